package process

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestUsageOfThisProcess(t *testing.T) {
	pid := os.Getpid()
	before, err := CPU(pid)
	if err != nil {
		t.Fatal(err)
	}
	// Work is counted, and whoever looks runs.
	for {
		now, err := CPU(pid)
		if err != nil {
			t.Fatal(err)
		}
		if now >= before+5*tick {
			break
		}
	}
	if r, err := Busy(pid); err != nil || !r {
		t.Errorf("got busy %v, %v of a process that runs, want true", r, err)
	}
	const some = 64 << 20
	b := make([]byte, some)
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	if peak, err := PeakRSS(pid); err != nil || peak < some {
		t.Errorf("got a peak of %d bytes, %v, want at least the %d that were touched", peak, err, some)
	}
}

func TestNotBusy(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := startCat(r)
	if err != nil {
		t.Fatal(err)
	}
	// A process that waits for its input comes to rest.
	for deadline := time.Now().Add(time.Minute); ; {
		busy, err := Busy(p.PID())
		if err != nil {
			t.Fatal(err)
		}
		if !busy {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a process that waits for input is busy for a minute")
		}
	}
	if busy, err := parent(os.Getpid()); err != nil || !busy {
		t.Errorf("got %v, %v of a process with a child, want true", busy, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

func startCat(in *os.File) (*Process, error) {
	c := exec.Command("cat")
	c.Stdin = in
	return Start(nil, "cat", c)
}
