package starlight_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// stamp is a time that no test reaches by itself.
var stamp = time.Unix(1_000_000_000, 123_456_789)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mounted mounts m until the end of the test.
func mounted(t *testing.T, m []mount.Mount) string {
	t.Helper()
	dir := t.TempDir()
	must(t, mount.All(m, dir))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func checkFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s: got %.20q (%d bytes), %v, want %.20q", path, got, len(got), err, want)
	}
}

func countMounts(t *testing.T, path string) (n int) {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == path {
			n++
		}
	}
	return n
}

// owners lists the directories of a snapshotter with owner and mode.
func owners(t *testing.T, root string) map[string][3]uint32 {
	t.Helper()
	out := map[string][3]uint32{}
	root = filepath.Join(root, "snapshots")
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		out[strings.TrimPrefix(path, root)] = [3]uint32{st.Mode, st.Uid, st.Gid}
		return nil
	}))
	return out
}
