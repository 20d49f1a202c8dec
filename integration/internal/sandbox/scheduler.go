package sandbox

import (
	"bytes"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const autogroups = "/proc/sys/kernel/sched_autogroup_enabled"

// oneScheduler has the kernel weigh processes that begin from now on by their own
// priority alone, and not by their session (sched(7), The autogroup feature). The far end
// of a world would be another machine: what it does in the background must not take half
// of the processors from the near one, however low its priority is.
func oneScheduler() (restore func() error, err error) {
	nothing := func() error { return nil }
	was, err := os.ReadFile(autogroups)
	if errors.Is(err, fs.ErrNotExist) || err == nil && string(bytes.TrimSpace(was)) == "0" {
		return nothing, nil
	}
	if err == nil {
		err = os.WriteFile(autogroups, []byte("0"), 0)
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return nothing, nil // in a container: figures are a little worse
	}
	if err != nil {
		return nothing, err
	}
	return func() error { return os.WriteFile(autogroups, was, 0) }, nil
}
