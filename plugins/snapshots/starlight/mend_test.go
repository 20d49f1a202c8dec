package starlight_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins/snapshots/starlight"
)

// When the lazy file system has died, overlays that nobody uses are made anew, and
// those that somebody does as soon as that has ended: never two on one directory.
func TestMendAfterTheLazyFileSystemDied(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	e := newLazy(t)
	chain := e.add(t, "i", map[string]string{"f": "contents"})
	s := newLazySnapshotter(t, e, starlight.Config{})
	name := adopt(t, s, chain, "")
	for _, key := range []string{"idle", "used"} {
		_, err := s.Prepare(ctx, key, name)
		must(t, err)
	}
	merged := func(key string) string {
		m, err := s.Mounts(ctx, key)
		must(t, err)
		return m[0].Source
	}
	container := t.TempDir()
	must(t, unix.Mount(merged("used"), container, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(container, unix.MNT_DETACH) })
	idle := merged("idle")
	device := func(path string) uint64 {
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		return st.Dev
	}
	old := device(container)

	e.broken(ctx)
	if n := countMounts(t, idle); n != 0 {
		t.Errorf("the overlay that nobody uses is mounted %d times, want 0", n)
	}
	checkFile(t, filepath.Join(merged("idle"), "f"), "contents")
	checkFile(t, filepath.Join(container, "f"), "contents")
	must(t, os.WriteFile(filepath.Join(container, "w"), []byte("written"), 0o600))
	if device(merged("used")) != old {
		t.Error("the overlay of a container was replaced under it")
	}

	must(t, unix.Unmount(container, 0))
	if got := merged("used"); device(got) == old && countMounts(t, got) != 1 {
		t.Error("the overlay of a container that has ended was not replaced")
	}
	checkFile(t, filepath.Join(merged("used"), "w"), "written")
}

// A crash while ID-mapped layers were mounted does not keep the next start from it,
// nor does that delete through them.
func TestStartUnmountsWhatWasBeingMade(t *testing.T) {
	needRoot(t)
	e := newLazy(t)
	root := filepath.Join(e.dir, "root")
	layer := t.TempDir()
	must(t, os.WriteFile(filepath.Join(layer, "f"), []byte("x"), 0o600))
	left := filepath.Join(root, "staging", "idmap-1", "0")
	must(t, os.MkdirAll(left, 0o700))
	must(t, unix.Mount(layer, left, "", unix.MS_BIND, ""))
	newLazySnapshotter(t, e, starlight.Config{})
	checkFile(t, filepath.Join(layer, "f"), "x")
	if n := countMounts(t, left); n != 0 {
		t.Errorf("mounted %d times", n)
	}
}

// A directory that a crash has left in place of a snapshot which was never committed is
// not in the way of the one that gets its number.
func TestStartRemovesWhatNoSnapshotHas(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	root := t.TempDir()
	s, err := starlight.New(starlight.Config{Root: root}, nil)
	must(t, err)
	_, err = s.Prepare(ctx, "1", "")
	must(t, err)
	must(t, s.Close())
	left := filepath.Join(root, "snapshots", "2", "fs")
	must(t, os.MkdirAll(left, 0o700))
	s, err = starlight.New(starlight.Config{Root: root}, nil)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	m, err := s.Prepare(ctx, "2", "")
	must(t, err)
	if m[0].Source != left {
		t.Errorf("got %v, want the directory %s", m, left)
	}
}
