// Package process runs daemons and commands in a namespace of a link, keeps what
// they say, and waits for what they are expected to say.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// Process is a running command.
type Process struct {
	// Name tells it from others in messages.
	Name string
	// Log holds its standard error, and its standard output unless the command
	// had a destination of its own for it.
	Log *Log

	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid when done is closed
}

// Start starts a command in a namespace; nil stands for that of the caller. The
// caller must Stop or Kill it, or see Done.
func Start(ns *wan.Namespace, name string, c *exec.Cmd) (*Process, error) {
	p := &Process{Name: name, Log: newLog(), cmd: c, done: make(chan struct{})}
	if c.Stdout == nil {
		c.Stdout = p.Log
	}
	c.Stderr = p.Log
	// What a child leaves behind may hold the pipes open for ever.
	c.WaitDelay = 2 * time.Second
	start := c.Start
	if ns != nil {
		start = func() error { return ns.Start(c) }
	}
	if err := start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = c.Wait()
		p.Log.end()
		close(p.done)
	}()
	return p, nil
}

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns how it ended.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s: %w: %s", p.Name, p.err, p.Log.Tail(2000))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s still runs: %w: %s", p.Name, ctx.Err(), p.Log.Tail(2000))
	}
}

// Signal sends a signal to the process alone.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Kill kills the process as a crash would, and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.done
}

// stopTime is longer than proxyd waits for requests that are under way, by default: that
// their clients have gone without a word it learns when the kernel sends to them again.
const stopTime = 40 * time.Second

// Stop asks the process to end, and kills it if it does not.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTime):
		p.Kill()
		return fmt.Errorf("%s did not stop within %v of SIGTERM", p.Name, stopTime)
	}
}

// WaitLog waits until a line of the log matches.
func (p *Process) WaitLog(ctx context.Context, pattern string) error {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	if err := p.Log.wait(ctx, re); err != nil {
		return fmt.Errorf("%s did not say %q: %w: %s", p.Name, pattern, err, p.Log.Tail(2000))
	}
	return nil
}

// RSS returns the resident memory of a process in bytes.
func RSS(pid int) (int64, error) { return statusField(pid, "VmRSS:") }

// PeakRSS returns the largest resident memory a process ever had, in bytes.
func PeakRSS(pid int) (int64, error) { return statusField(pid, "VmHWM:") }

func statusField(pid int, field string) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field); ok {
			kb, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no %s of process %d", field, pid)
}

// Children lists the direct children of a process.
func Children(pid int) ([]int, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	var all []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		for s := range strings.FieldsSeq(string(b)) {
			n, err := strconv.Atoi(s)
			if err != nil {
				return nil, err
			}
			all = append(all, n)
		}
	}
	return all, nil
}

// Run runs a command in a namespace and returns its standard output; the error
// carries what it said on standard error.
func Run(ns *wan.Namespace, c *exec.Cmd) (string, error) {
	var out strings.Builder
	errs := newLog()
	c.Stdout, c.Stderr = &out, errs
	c.WaitDelay = 2 * time.Second
	run := c.Run
	if ns != nil {
		run = func() error { return ns.Run(c) }
	}
	if err := run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, strings.TrimSpace(errs.Tail(4000)))
	}
	return out.String(), nil
}

var errEnded = errors.New("it has ended")

var _ io.Writer = (*Log)(nil)
