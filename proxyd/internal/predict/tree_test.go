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
	if hot > len(order) {
		tb.Errorf("got %d hot items of %d", hot, len(order))
	}
	pieces := make(map[uint32]map[uint32]bool)
	var out []string
	for _, it := range order {
		seen := pieces[it.Object]
		if seen == nil {
			seen = make(map[uint32]bool)
			pieces[it.Object] = seen
			out = append(out, name[it.Object])
		}
		n := uint32((len(t.contents[it.Object]) + toc.PieceSize - 1) / toc.PieceSize)
		end := n
		if it.Pieces > 0 {
			end = it.First + it.Pieces
		}
		for i := it.First; i < end; i++ {
			if seen[i] || i >= n {
				tb.Fatalf("%s: piece %d is named twice, or does not exist", name[it.Object], i)
			}
			seen[i] = true
		}
		if len(seen) == int(n) {
			delete(name, it.Object)
		}
	}
	if len(name) != 0 {
		tb.Fatalf("objects that are not in the order, or not as a whole: %v", name)
	}
	return out
}
