// Package background is for work that nobody waits for, or that must not hold up who
// waits for something else.
package background

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// nice of threads in the background: they have a tenth of the weight of others
// (sched(7)).
const nice = 10

// Lower gives the calling goroutine a thread of its own with low priority. Both end
// together: the goroutine must not do anything else afterwards.
func Lower() error {
	runtime.LockOSThread()
	now, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
	if err == nil && 20-now >= nice { // as the system call has it
		return nil
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), nice); err != nil {
		return fmt.Errorf("lower the priority of a thread: %w", err)
	}
	return nil
}
