//go:build !failpoint

// Package failpoint marks the steps that change what is on the disk, so that tests can
// end the process at each of them. Only builds with the tag failpoint do.
package failpoint

// Here is a step. Names are not used twice.
func Here(string) {}
