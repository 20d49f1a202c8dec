// Package integration tests Starlight from outside: real containerd, runc,
// registry and proxyd on the two ends of an emulated link. One file tells one
// story. The tests need root; "make test" runs them with what they need.
package integration
