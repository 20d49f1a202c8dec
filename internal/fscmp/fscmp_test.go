package fscmp

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCompare(t *testing.T) {
	old := time.Unix(1000, 5)
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name string
		opts Options
		edit func(t *testing.T, b string)
		want []string // path + what
	}{
		{name: "equal", edit: func(*testing.T, string) {}},
		{name: "missing", edit: func(t *testing.T, b string) { must(t, os.Remove(b+"/d/l")) }, want: []string{"d/l presence", "f nlink"}},
		{name: "extra", edit: func(t *testing.T, b string) { must(t, os.Mkdir(b+"/d/x", 0o755)) }, want: []string{"d/x presence"}},
		{name: "type", edit: func(t *testing.T, b string) {
			must(t, os.Remove(b+"/s"))
			must(t, os.Mkdir(b+"/s", 0o777))
		}, want: []string{"s type"}},
		{name: "mode", edit: func(t *testing.T, b string) { must(t, os.Chmod(b+"/g", 0o644|os.ModeSetuid)) }, want: []string{"g mode"}},
		{name: "mtime", edit: func(t *testing.T, b string) { must(t, os.Chtimes(b+"/g", old, old.Add(1))) }, want: []string{"g mtime"}},
		{name: "content", edit: func(t *testing.T, b string) { must(t, os.WriteFile(b+"/g", []byte("Hullo"), 0)) }, want: []string{"g content at 1"}},
		{name: "size", edit: func(t *testing.T, b string) { must(t, os.Truncate(b+"/g", 4)) }, want: []string{"g size"}},
		{name: "target", edit: func(t *testing.T, b string) {
			must(t, os.Remove(b+"/s"))
			must(t, os.Symlink("elsewhexe", b+"/s"))
		}, want: []string{"s target"}},
		{name: "content not read", opts: Options{Content: func(string, int64) bool { return false }},
			edit: func(t *testing.T, b string) { must(t, os.WriteFile(b+"/g", []byte("Hullo"), 0)) }},
		{name: "skip", opts: Options{Skip: func(p string) bool { return p == "d" }, IgnoreLinks: true},
			edit: func(t *testing.T, b string) { must(t, os.RemoveAll(b+"/d")) }},
		{name: "link broken", edit: func(t *testing.T, b string) {
			must(t, os.Rename(b+"/d/l", b+"/d/l2"))
			must(t, os.WriteFile(b+"/d/l", []byte("shared"), 0o644))
			must(t, os.Rename(b+"/d/l2", b+"/g2"))
			must(t, os.Remove(b+"/g"))
			must(t, os.Link(b+"/d/l", b+"/g3"))
			must(t, os.Rename(b+"/g3", b+"/g"))
		}, want: []string{"f hard link", "g hard link", "g nlink", "g size", "g2 presence"}},
		{name: "xattr", edit: func(t *testing.T, b string) {
			if err := unix.Setxattr(b+"/g", "user.x", []byte("y"), 0); err != nil {
				t.Skip("no user xattrs here: ", err)
			}
		}, want: []string{"g xattr user.x"}},
		{name: "max", opts: Options{Max: 1}, edit: func(t *testing.T, b string) {
			must(t, os.Chmod(b+"/g", 0o600))
			must(t, os.Chmod(b+"/f", 0o600))
		}, want: []string{"d/l mode"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			a, b := filepath.Join(root, "a"), filepath.Join(root, "b")
			for _, d := range []string{a, b} {
				must(t, os.MkdirAll(d+"/d", 0o755))
				must(t, os.WriteFile(d+"/f", []byte("shared"), 0o644))
				must(t, os.Link(d+"/f", d+"/d/l"))
				must(t, os.WriteFile(d+"/g", []byte("Hallo"), 0o644))
				must(t, os.Symlink("elsewhere", d+"/s"))
			}
			tc.edit(t, b)
			setTimes(t, root, old, tc.name == "mtime")
			got, err := Compare(a, b, tc.opts)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, d := range got {
				names = append(names, d.Path+" "+d.What)
			}
			slices.Sort(names)
			slices.Sort(tc.want)
			if !slices.Equal(names, tc.want) {
				t.Errorf("got %v, want %q", got, tc.want)
			}
		})
	}
}

// setTimes gives all files one time, so that only edits on purpose differ.
func setTimes(t *testing.T, root string, at time.Time, keepFiles bool) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || keepFiles && filepath.Base(p) == "g" && filepath.Base(filepath.Dir(p)) == "b" {
			return err
		}
		ts := unix.NsecToTimespec(at.UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCompareDirTimesBefore(t *testing.T) {
	start := time.Now().Add(-time.Hour)
	a, b := t.TempDir(), t.TempDir()
	if err := os.Chtimes(b, start, start.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	got, err := Compare(a, b, Options{DirTimesBefore: start})
	if err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want no difference", got, err)
	}
	if got, err = Compare(a, b, Options{}); err != nil || len(got) != 1 || got[0].What != "mtime" {
		t.Errorf("got %v, %v, want the time to differ", got, err)
	}
}
