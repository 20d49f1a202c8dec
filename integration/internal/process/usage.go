package process

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// tick is the unit of times in /proc/PID/stat; the kernel's USER_HZ is 100 on all
// architectures that Go runs on.
const tick = 10 * time.Millisecond

// CPU returns the processor time that a process and those of its children that
// have ended used so far.
func CPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const first, last = 11, 14 // utime, stime, cutime, cstime, counted from the state
	if len(fields) <= last {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var sum int64
	for _, f := range fields[first : last+1] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * tick, nil
}

// Busy tells whether a thread of a process runs or waits for a processor, which
// on a busy machine uses no time, or has a child process.
func Busy(pid int) (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return false, err
	}
	for _, t := range threads {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // it has ended
		}
		if state := bytes.TrimSpace(b[bytes.LastIndexByte(b, ')')+1:]); len(state) > 0 && state[0] == 'R' {
			return true, nil
		}
	}
	return parent(pid)
}

// parent tells whether a process has children.
func parent(pid int) (bool, error) {
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return false, err
	}
	for _, p := range all {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended
		}
		const ppid = 1 // counted from the state
		if f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]); len(f) > ppid && string(f[ppid]) == strconv.Itoa(pid) {
			return true, nil
		}
	}
	return false, nil
}

// ResetPeak makes [PeakRSS] count from now on.
func ResetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}
