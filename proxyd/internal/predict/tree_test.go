package predict

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// tree is an image made by a test: paths with contents, "-> target" for
// symlinks; a name that ends in "*" is executable.
type tree struct {
	entries  []Entry
	contents [][]byte
}

func newTree(files map[string]string) *tree {
	t := &tree{}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		mode := uint32(0o644)
		clean := strings.TrimSuffix(name, "*")
		if clean != name {
			mode = 0o755
		}
		if target, ok := strings.CutPrefix(files[name], "-> "); ok {
			t.symlink(clean, target)
			continue
		}
		t.file(clean, []byte(files[name]), mode)
	}
	return t
}

func (t *tree) dirs(name string) {
	for d := parentOf(name); d != ""; d = parentOf(d) {
		if !slices.ContainsFunc(t.entries, func(e Entry) bool { return e.Path == d }) {
			t.entries = append(t.entries, Entry{Path: d, Type: toc.TypeDir, Mode: 0o755, Object: NoObject})
		}
	}
}

func (t *tree) symlink(name, target string) {
	t.dirs(name)
	t.entries = append(t.entries, Entry{Path: name, Type: toc.TypeSymlink, Link: target, Object: NoObject})
}

func (t *tree) file(name string, content []byte, mode uint32) {
	t.dirs(name)
	e := Entry{Path: name, Type: toc.TypeReg, Mode: mode, Object: NoObject, Size: int64(len(content))}
	if len(content) > 0 {
		e.Object = len(t.contents)
		t.contents = append(t.contents, content)
	}
	t.entries = append(t.entries, e)
}

// host copies a path of the machine, with the symlinks on the way to it.
func (t *tree) host(tb testing.TB, name string) {
	tb.Helper()
	for range maxSymlinks {
		dir, err := filepath.EvalSymlinks(filepath.Dir(name))
		if err != nil {
			tb.Skipf("this machine has no %s", name)
		}
		if dir != filepath.Dir(name) && t.at(filepath.Dir(name)) == nil {
			t.symlink(strings.TrimPrefix(filepath.Dir(name), "/"), dir)
		}
		name = filepath.Join(dir, filepath.Base(name))
		if t.at(name) != nil {
			return
		}
		target, err := os.Readlink(name)
		if err != nil {
			b, err := os.ReadFile(name)
			if err != nil {
				tb.Skipf("this machine has no %s", name)
			}
			t.file(strings.TrimPrefix(name, "/"), b, 0o755)
			return
		}
		t.symlink(strings.TrimPrefix(name, "/"), target)
		name = filepath.Join(filepath.Dir(name), target)
		if filepath.IsAbs(target) {
			name = target
		}
	}
}

func (t *tree) at(name string) *Entry {
	for i := range t.entries {
		if "/"+t.entries[i].Path == name {
			return &t.entries[i]
		}
	}
	return nil
}

// ReadObjectAt implements Objects.
func (t *tree) ReadObjectAt(_ context.Context, object uint32, p []byte, off int64) (int, error) {
	c := t.contents[object]
	if off >= int64(len(c)) {
		return 0, io.EOF
	}
	n := copy(p, c[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// paths runs Order and names what it gives.
func (t *tree) paths(tb testing.TB, cfg Config) []string {
	tb.Helper()
	order, hot, err := Order(tb.Context(), t.entries, cfg, t, DefaultLimits())
	if err != nil {
		tb.Fatal(err)
	}
	name := make(map[uint32]string)
	files := 0
	for _, e := range t.entries {
		if e.Object >= 0 {
			name[uint32(e.Object)] = e.Path
			files++
		}
	}
	if hot > files {
		tb.Errorf("got %d hot objects of %d", hot, files)
	}
	if len(order) != files {
		tb.Fatalf("got %d objects in the order, want %d", len(order), files)
	}
	out := make([]string, len(order))
	for i, o := range order {
		out[i] = name[o]
		delete(name, o)
	}
	if len(name) != 0 {
		tb.Fatalf("objects that are not in the order: %v", name)
	}
	return out
}
