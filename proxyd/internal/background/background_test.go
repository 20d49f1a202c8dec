package background

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// niceness of the calling thread.
func niceness(t *testing.T) int {
	t.Helper()
	got, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
	if err != nil {
		t.Error(err)
	}
	return 20 - got // as the system call has it
}

// What a goroutine in the background starts is not in the background.
func TestLower(t *testing.T) {
	before := niceness(t)
	lowered, other := make(chan int), make(chan int)
	go func() {
		if err := Lower(); err != nil {
			t.Error(err)
		}
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			other <- niceness(t)
		}()
		got := <-other
		if got != before {
			t.Errorf("a goroutine that it started has nice %d, want %d", got, before)
		}
		lowered <- niceness(t)
	}()
	if got := <-lowered; got != max(before, nice) {
		t.Errorf("got nice %d, want %d", got, nice)
	}
}
