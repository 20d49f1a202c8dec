//go:build failpoint

// Package failpoint marks the steps that change what is on the disk, so that tests can
// end the process at each of them. Only builds with the tag failpoint do.
package failpoint

import (
	"os"

	"golang.org/x/sys/unix"
)

var (
	// at is the step at which the process ends.
	at = os.Getenv("STARLIGHT_FAILPOINT")
	// disk, if it is set, is an ext4 whose power is cut before.
	disk = os.Getenv("STARLIGHT_FAILPOINT_DISK")
)

// Here ends the process as kill -9 does, if this is the step.
func Here(step string) {
	if step != at {
		return
	}
	if disk != "" {
		f, err := os.Open(disk)
		if err == nil {
			const (
				shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN
				noLogFlush = 2
			)
			err = unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush)
		}
		if err != nil {
			panic("failpoint: " + err.Error())
		}
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {} // until the signal has come
}
