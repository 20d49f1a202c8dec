package background

import (
	"errors"
	"runtime"
	"strings"
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

// What is lower already stays so.
func TestLowerRaisesNothing(t *testing.T) {
	got := make(chan int)
	const low = nice + 5
	go func() {
		runtime.LockOSThread() // ends with the goroutine
		err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), low)
		if err == nil {
			err = Lower()
		}
		if err != nil {
			t.Error(err)
		}
		got <- niceness(t)
	}()
	if n := <-got; n != low {
		t.Errorf("got nice %d, want %d", n, low)
	}
}

func TestGuard(t *testing.T) {
	failed := errors.New("failed")
	for name, tc := range map[string]struct {
		f    func() error
		want error // nil: a panic is
	}{
		"error":   {func() error { return failed }, failed},
		"panic":   {func() error { panic("index out of range") }, nil},
		"runtime": {func() error { return []error{failed}[len(t.Name())] }, nil},
	} {
		err := Guard(tc.f)()
		var p *PanicError
		if caught := errors.As(err, &p); caught == (tc.want != nil) || (tc.want != nil && !errors.Is(err, tc.want)) {
			t.Errorf("%s: got %v", name, err)
		}
		if p != nil && !strings.Contains(err.Error(), "TestGuard") {
			t.Errorf("%s: got %v, want where it was", name, err)
		}
	}
	if err := Guard(func() error { return nil })(); err != nil {
		t.Error(err)
	}
}
