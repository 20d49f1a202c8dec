package process

import (
	"bytes"
	"context"
	"regexp"
	"sync"
)

// maxLog bytes are kept of what a process says; what comes first is dropped first.
const maxLog = 8 << 20

// Log keeps the output of a process.
type Log struct {
	mu      sync.Mutex // guards: all below
	buf     []byte
	ended   bool
	changed chan struct{} // closed and replaced at each change
}

func newLog() *Log { return &Log{changed: make(chan struct{})} }

// Write appends to the log.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, b...)
	if over := len(l.buf) - maxLog; over > 0 {
		l.buf = l.buf[:copy(l.buf, l.buf[over:])]
	}
	l.wake()
	return len(b), nil
}

func (l *Log) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Log) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.wake()
}

// String returns all that is kept.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf)
}

// Tail returns the last n bytes, from the start of a line.
func (l *Log) Tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buf
	if len(b) > n {
		b = b[len(b)-n:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return string(b)
}

// wait waits until the pattern matches somewhere in a line.
func (l *Log) wait(ctx context.Context, re *regexp.Regexp) error {
	for {
		l.mu.Lock()
		found, ended, changed := match(re, l.buf), l.ended, l.changed
		l.mu.Unlock()
		switch {
		case found:
			return nil
		case ended:
			return errEnded
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func match(re *regexp.Regexp, b []byte) bool {
	for line := range bytes.Lines(b) {
		if re.Match(bytes.TrimRight(line, "\r\n")) {
			return true
		}
	}
	return false
}
