package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// RemoveTree unmounts everything below dir and removes it.
func RemoveTree(dir string) error {
	if dir == "" {
		return nil
	}
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mounts) { // children are mounted after parents
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	if len(errs) == 0 { // never remove through a mount
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// mountsBelow lists mount points below dir in the order of mounting.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []string
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20) // overlay options are long
	for s.Scan() {
		if fields := strings.Fields(s.Text()); len(fields) > 4 {
			if p := unescape(fields[4]); strings.HasPrefix(p, dir+"/") {
				all = append(all, p)
			}
		}
	}
	return all, s.Err()
}

// unescape undoes the kernel's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// killBelow kills what has dir in its command line or is a container's first
// process: containerd, shims and helpers of a run that ended without cleaning up.
func killBelow(dir string) {
	pids, _ := filepath.Glob(filepath.Join(dir, "*", "state", "io.containerd.runtime.v2.task", "*", "*", "init.pid")) // a valid pattern
	for _, p := range pids {
		if b, err := os.ReadFile(p); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && inContainerOf(pid, dir) {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), dir+"/") {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// inContainerOf tells whether the root of a process was mounted from below dir;
// its pid may long belong to another.
func inContainerOf(pid int, dir string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	return err == nil && strings.Contains(string(b), dir+"/")
}

// DropCaches writes back and drops clean page cache, dentries and inodes, so that
// a measurement starts cold.
func DropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
