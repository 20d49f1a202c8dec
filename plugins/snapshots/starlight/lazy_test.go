package starlight_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
	"github.com/starlight-delta/starlight/plugins/snapshots/starlight"
)

// lazy has chains whose trees are directories of stubs, as overlayfs takes them
// just like EROFS images.
type lazy struct {
	dir      string
	mu       sync.Mutex
	chains   map[digest.Digest]engine.Lower // guarded by mu
	swept    [][]digest.Digest              // guarded by mu
	complete func(context.Context, digest.Digest)
	broken   func(context.Context)
	tracing  []string // snapshots
}

func newLazy(t testing.TB) *lazy {
	return &lazy{dir: t.TempDir(), chains: map[digest.Digest]engine.Lower{}}
}

// add makes a chain of files, by path.
func (l *lazy) add(t *testing.T, name string, files map[string]string) digest.Digest {
	t.Helper()
	chain := digest.FromString(name)
	meta, objects := filepath.Join(l.dir, name), filepath.Join(l.dir, "objects")
	must(t, os.MkdirAll(meta, 0o755))
	for path, contents := range files {
		d := digest.FromString(contents).Encoded()
		object := filepath.Join(objects, d[:2], d[2:])
		must(t, os.MkdirAll(filepath.Dir(object), 0o700))
		must(t, os.WriteFile(object, []byte(contents), 0o400))
		stub := filepath.Join(meta, path)
		must(t, os.MkdirAll(filepath.Dir(stub), 0o755))
		must(t, os.WriteFile(stub, nil, 0o644))
		must(t, os.Truncate(stub, int64(len(contents))))
		must(t, unix.Setxattr(stub, "trusted.overlay.metacopy", nil, 0))
		must(t, unix.Setxattr(stub, "trusted.overlay.redirect", []byte("/"+d[:2]+"/"+d[2:]), 0))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.chains[chain] = engine.Lower{Metadata: meta, Data: []string{objects}}
	return chain
}

func (l *lazy) HasChain(chain digest.Digest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.chains[chain]
	return ok
}

func (l *lazy) Lower(_ context.Context, chain digest.Digest) (engine.Lower, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lower, ok := l.chains[chain]; ok {
		return lower, nil
	}
	return engine.Lower{}, fmt.Errorf("chain %s: %w", chain, errdefs.ErrNotFound)
}

func (l *lazy) Usage(_ context.Context, chain, parent digest.Digest) (int64, int64, error) {
	if parent != "" {
		return 7, 1, nil
	}
	return 42, 3, nil
}

func (l *lazy) OnComplete(fn func(context.Context, digest.Digest)) { l.complete = fn }

func (l *lazy) OnBroken(fn func(context.Context)) { l.broken = fn }

func (l *lazy) OnCollect(func(context.Context) error) {}

func (l *lazy) Trace(_ context.Context, snapshot string, _ digest.Digest, label string) string {
	if label == "" || label == "false" {
		return ""
	}
	l.tracing = append(l.tracing, snapshot)
	return filepath.Join(l.dir, "objects")
}

func (l *lazy) EndTrace(_ context.Context, snapshot string) {
	l.tracing = slices.DeleteFunc(l.tracing, func(s string) bool { return s == snapshot })
}

func (l *lazy) Sweep(_ context.Context, live []digest.Digest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.swept = append(l.swept, live)
	return nil
}

// adopt prepares a chain as an unpacker does, and returns the name it got.
func adopt(t *testing.T, s snapshots.Snapshotter, chain digest.Digest, parent string) string {
	t.Helper()
	ctx := t.Context()
	_, err := s.Prepare(ctx, "extract "+chain.String(), parent, refLabel(chain))
	if !errdefs.IsAlreadyExists(err) {
		t.Fatalf("prepare of a known chain: got %v, want already exists", err)
	}
	var name string
	filter := fmt.Sprintf("labels.%q==%s,parent==%q", plugins.LabelTargetSnapshot, chain, parent)
	must(t, s.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		name = i.Name
		return nil
	}, filter))
	if name == "" {
		t.Fatal("metadata would not find the snapshot")
	}
	return name
}

func refLabel(chain digest.Digest) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{plugins.LabelTargetSnapshot: chain.String()})
}

func TestLazyChain(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	e := newLazy(t)
	base := e.add(t, "base", map[string]string{"etc/a": "old"})
	top := e.add(t, "top", map[string]string{"etc/a": "new", "bin/b": strings.Repeat("x", 10000)})
	must(t, os.Chown(e.chains[top].Metadata, 12, 34))
	must(t, os.Chmod(e.chains[top].Metadata, 0o711))
	must(t, unix.Setxattr(e.chains[top].Metadata, "user.root", []byte("yes"), 0))
	must(t, os.Chtimes(e.chains[top].Metadata, stamp, stamp))
	s := newLazySnapshotter(t, e, starlight.Config{AsyncRemove: true})

	baseName := adopt(t, s, base, "")
	topName := adopt(t, s, top, baseName)
	if again := adopt(t, s, top, baseName); again != topName {
		t.Errorf("a second namespace got %q, want %q", again, topName)
	}

	m, err := s.Prepare(ctx, "c", topName)
	must(t, err)
	if len(m) != 1 || m[0].Type != "bind" || !strings.HasSuffix(m[0].Source, "/merged") {
		t.Fatalf("got %v, want one bind mount", m)
	}
	root := mounted(t, m)
	checkFile(t, filepath.Join(root, "etc/a"), "new")
	checkFile(t, filepath.Join(root, "bin/b"), strings.Repeat("x", 10000))
	st, err := os.Stat(root)
	must(t, err)
	sys := st.Sys().(*syscall.Stat_t)
	if st.Mode().Perm() != 0o711 || sys.Uid != 12 || sys.Gid != 34 || !st.ModTime().Equal(stamp) {
		t.Errorf("root: got %v %d:%d %v", st.Mode(), sys.Uid, sys.Gid, st.ModTime())
	}
	value := make([]byte, 8)
	if n, err := unix.Getxattr(root, "user.root", value); err != nil || string(value[:n]) != "yes" {
		t.Errorf("xattr of the root: got %q, %v", value[:n], err)
	}
	must(t, os.Chown(filepath.Join(root, "etc/a"), 5, 5))
	must(t, os.WriteFile(filepath.Join(root, "etc/c"), []byte("mine"), 0o600))

	t.Run("usage", func(t *testing.T) {
		for name, want := range map[string]int64{baseName: 42, topName: 7} {
			if u, err := s.Usage(ctx, name); err != nil || u.Size != want {
				t.Errorf("%s: got %v, %v, want %d", name, u, err, want)
			}
		}
		if u, err := s.Usage(ctx, "c"); err != nil || u.Inodes < 3 {
			t.Errorf("active: got %v, %v", u, err)
		}
	})
	t.Run("commit", func(t *testing.T) {
		must(t, s.Commit(ctx, "mine", "c"))
		m, err := s.View(ctx, "v", "mine")
		must(t, err)
		root := mounted(t, m)
		checkFile(t, filepath.Join(root, "etc/a"), "new")
		checkFile(t, filepath.Join(root, "etc/c"), "mine")
		err = os.WriteFile(filepath.Join(root, "x"), nil, 0o600)
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("write to a view: got %v", err)
		}
		st, err := os.Stat(filepath.Join(root, "etc/a"))
		must(t, err)
		if st.Sys().(*syscall.Stat_t).Uid != 5 {
			t.Error("the owner is lost")
		}
	})
	t.Run("cleanup", func(t *testing.T) {
		must(t, s.Remove(ctx, "v"))
		must(t, s.Cleanup(ctx))
		if got := e.swept[len(e.swept)-1]; len(got) != 2 {
			t.Errorf("live chains: got %v", got)
		}
		must(t, s.Remove(ctx, "mine"))
		must(t, s.Remove(ctx, topName))
		must(t, s.Remove(ctx, baseName))
		must(t, s.Cleanup(ctx))
		if got := e.swept[len(e.swept)-1]; len(got) != 0 {
			t.Errorf("live chains: got %v", got)
		}
		left, err := os.ReadDir(filepath.Join(filepath.Join(e.dir, "root"), "snapshots"))
		must(t, err)
		if len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// TestEmpty: the engine may finish, and containerd collect, before the first snapshot.
func TestEmpty(t *testing.T) {
	needRoot(t)
	e := newLazy(t)
	s := newLazySnapshotter(t, e, starlight.Config{})
	must(t, s.Cleanup(t.Context()))
	if len(e.swept) != 1 || len(e.swept[0]) != 0 {
		t.Errorf("swept %v, want once, with nothing live", e.swept)
	}
	e.complete(t.Context(), digest.FromString("any"))
}

// TestMountsAgain loses the mount, as a reboot does.
func TestMountsAgain(t *testing.T) {
	needRoot(t)
	e := newLazy(t)
	chain := e.add(t, "i", map[string]string{"f": "contents"})
	s := newLazySnapshotter(t, e, starlight.Config{})
	m, err := s.Prepare(t.Context(), "c", adopt(t, s, chain, ""))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(m[0].Source, "w"), []byte("written"), 0o600))
	must(t, unix.Unmount(m[0].Source, 0))
	for range 2 {
		m, err = s.Mounts(t.Context(), "c")
		must(t, err)
	}
	checkFile(t, filepath.Join(m[0].Source, "f"), "contents")
	checkFile(t, filepath.Join(m[0].Source, "w"), "written")
	if n := countMounts(t, m[0].Source); n != 1 {
		t.Errorf("mounted %d times", n)
	}
	e.complete(t.Context(), chain)
	checkFile(t, filepath.Join(m[0].Source, "f"), "contents")
	must(t, os.WriteFile(filepath.Join(m[0].Source, "w"), []byte("after the remount"), 0o600))
}

// TestManyLayersOnLazy needs more mount options than fit into a page.
func TestManyLayersOnLazy(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	e := newLazy(t)
	s := newLazySnapshotter(t, e, starlight.Config{})
	parent := adopt(t, s, e.add(t, "i", map[string]string{"f": "contents"}), "")
	const layers = 120
	for i := range layers {
		key, name := fmt.Sprint("k", i), fmt.Sprint("c", i)
		m, err := s.Prepare(ctx, key, parent)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(m[0].Source, name), []byte(name), 0o600))
		must(t, s.Commit(ctx, name, key))
		parent = name
	}
	m, err := s.Prepare(ctx, "top", parent)
	must(t, err)
	checkFile(t, filepath.Join(m[0].Source, "f"), "contents")
	for i := range layers {
		checkFile(t, filepath.Join(m[0].Source, fmt.Sprint("c", i)), fmt.Sprint("c", i))
	}
}

// TestChainOnPlainParent: a lower layer was unpacked before the engine knew the image.
func TestChainOnPlainParent(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	e := newLazy(t)
	s := newLazySnapshotter(t, e, starlight.Config{})
	_, err := s.Prepare(ctx, "k", "")
	must(t, err)
	must(t, s.Commit(ctx, "plain", "k"))
	base := e.add(t, "base", map[string]string{"f": "old"})
	top := e.add(t, "top", map[string]string{"f": "new"})
	onPlain := adopt(t, s, top, "plain")
	onLazy := adopt(t, s, top, adopt(t, s, base, ""))
	if onPlain == onLazy {
		t.Fatal("snapshots with different parents share a name")
	}
	for key, parent := range map[string]string{"a": onPlain, "b": onLazy} {
		m, err := s.Prepare(ctx, key, parent)
		must(t, err)
		checkFile(t, filepath.Join(m[0].Source, "f"), "new")
	}
}

// TestChainLabelIsOurs: labels come from annotations of images. If they could
// name a chain, an image could show the files of another.
func TestChainLabelIsOurs(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	e := newLazy(t)
	secret := e.add(t, "secret", map[string]string{"f": "secret"})
	s := newLazySnapshotter(t, e, starlight.Config{})
	forged := snapshots.WithLabels(map[string]string{plugins.LabelChain: secret.String()})

	_, err := s.Prepare(ctx, "k", "", forged)
	must(t, err)
	must(t, s.Commit(ctx, "c", "k", forged))
	for _, fields := range [][]string{nil, {"labels"}, {"labels." + plugins.LabelChain}} {
		_, err = s.Update(ctx, snapshots.Info{Name: "c", Labels: map[string]string{plugins.LabelChain: secret.String()}}, fields...)
		must(t, err)
		info, err := s.Stat(ctx, "c")
		must(t, err)
		if v := info.Labels[plugins.LabelChain]; v != "" {
			t.Fatalf("update of %v: the label is %q", fields, v)
		}
	}
	m, err := s.View(ctx, "v", "c")
	must(t, err)
	if strings.HasSuffix(m[0].Source, "merged") {
		t.Errorf("got %v, want a plain mount", m)
	}

	// And what is ours stays, whatever a client writes.
	name := adopt(t, s, secret, "")
	for _, fields := range [][]string{nil, {"labels"}, {"labels." + plugins.LabelChain}, {"labels.x"}} {
		_, err := s.Update(ctx, snapshots.Info{Name: name, Labels: map[string]string{"x": "y"}}, fields...)
		must(t, err)
		info, err := s.Stat(ctx, name)
		must(t, err)
		if info.Labels[plugins.LabelChain] != secret.String() {
			t.Fatalf("update of %v: the label is lost", fields)
		}
	}
}

func TestRemapped(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	e := newLazy(t)
	chain := e.add(t, "i", map[string]string{"dir/f": "contents"})
	s := newLazySnapshotter(t, e, starlight.Config{RemapIDs: true})
	m, err := s.Prepare(ctx, "c", adopt(t, s, chain, ""), snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:1000:65536",
		snapshots.LabelSnapshotGIDMapping: "0:2000:65536",
	}))
	must(t, err)
	for _, p := range []string{"", "dir", "dir/f"} {
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(m[0].Source, p), &st))
		if st.Uid != 1000 || st.Gid != 2000 {
			t.Errorf("%q: got %d:%d, want 1000:2000", p, st.Uid, st.Gid)
		}
	}
	checkFile(t, filepath.Join(m[0].Source, "dir/f"), "contents")
	if left, err := os.ReadDir(filepath.Join(filepath.Join(e.dir, "root"), "staging")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestUnknownChainIsUnpacked(t *testing.T) {
	needRoot(t)
	s := newLazySnapshotter(t, newLazy(t), starlight.Config{})
	for _, target := range []digest.Digest{digest.FromString("unknown"), "no digest"} {
		m, err := s.Prepare(t.Context(), "k"+target.String(), "", refLabel(target))
		if err != nil || len(m) != 1 {
			t.Errorf("%q: got %v, %v", target, m, err)
		}
	}
}

// TestFailedMountLeavesNothing: clients try again with the same key.
func TestFailedMountLeavesNothing(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	e := newLazy(t)
	chain := e.add(t, "i", map[string]string{"f": "contents"})
	s := newLazySnapshotter(t, e, starlight.Config{})
	name := adopt(t, s, chain, "")
	lower := e.chains[chain]
	e.chains[chain] = engine.Lower{Metadata: lower.Metadata, Data: []string{"/does/not/exist"}}
	if _, err := s.Prepare(ctx, "c", name); err == nil {
		t.Fatal("no error")
	}
	e.chains[chain] = lower
	if _, err := s.Prepare(ctx, "c", name); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Join(filepath.Join(e.dir, "root"), "snapshots"))
	must(t, err)
	if len(left) != 1 {
		t.Errorf("got %d directories, want 1", len(left))
	}
}

func newLazySnapshotter(t *testing.T, e *lazy, c starlight.Config) *starlight.Snapshotter {
	t.Helper()
	c.Root = filepath.Join(e.dir, "root")
	s := newSnapshotter(t, c, e)
	t.Cleanup(func() {
		merged, err := filepath.Glob(filepath.Join(c.Root, "snapshots/*/merged"))
		must(t, err)
		for _, m := range merged {
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				t.Error(err)
			}
		}
	})
	return s
}

// TestTrace: containers are traced whose label says so, until they are removed.
func TestTrace(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	e := newLazy(t)
	s := newLazySnapshotter(t, e, starlight.Config{})
	name := adopt(t, s, e.add(t, "top", map[string]string{"etc/a": "contents"}), "")
	label := snapshots.WithLabels(map[string]string{plugins.LabelOptimizer: "true"})
	m, err := s.Prepare(ctx, "traced", name, label)
	must(t, err)
	checkFile(t, filepath.Join(mounted(t, m), "etc/a"), "contents")
	_, err = s.Prepare(ctx, "other", name)
	must(t, err)
	_, err = s.View(ctx, "view", name, label)
	must(t, err)
	if len(e.tracing) != 1 {
		t.Fatalf("traced are %v, want one container", e.tracing)
	}
	_, err = s.Mounts(ctx, "traced") // again: the same start
	must(t, err)
	if len(e.tracing) != 1 {
		t.Errorf("traced are %v after another look", e.tracing)
	}
	must(t, s.Remove(ctx, "traced"))
	if len(e.tracing) != 0 {
		t.Errorf("traced are %v after the removal", e.tracing)
	}
}

// podLabels are those of the pods of containers.
type podLabels map[string]string

func (p podLabels) Optimizer(_ context.Context, id string) string { return p[id] }

// TestTraceByPod: what a pod says is known only after the first mounts of its container,
// and heeded before the container runs.
func TestTraceByPod(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	e := newLazy(t)
	s := newLazySnapshotter(t, e, starlight.Config{})
	name := adopt(t, s, e.add(t, "top", map[string]string{"etc/a": "contents"}), "")
	pods := podLabels{}
	s.SetContainers(pods)
	prepare := func(id string, opts ...snapshots.Opt) {
		t.Helper()
		_, err := s.Prepare(ctx, "k8s.io/7/"+id, name, opts...)
		must(t, err)
		_, err = s.Mounts(ctx, "k8s.io/7/"+id) // for a look at the files
		must(t, err)
	}
	start := func(id string) string {
		t.Helper()
		m, err := s.Mounts(ctx, "k8s.io/7/"+id)
		must(t, err)
		return mounted(t, m)
	}
	prepare("pod")
	prepare("other")
	prepare("no", snapshots.WithLabels(map[string]string{plugins.LabelOptimizer: "false"}))
	prepare("running")
	running := start("running")
	pods["pod"], pods["no"], pods["running"] = "web", "web", "web"
	checkFile(t, filepath.Join(start("pod"), "etc/a"), "contents")
	start("other")
	start("no")
	start("running")
	if len(e.tracing) != 1 {
		t.Errorf("traced are %v, want the container of the pod", e.tracing)
	}
	checkFile(t, filepath.Join(running, "etc/a"), "contents")
	start("pod")
	if len(e.tracing) != 1 {
		t.Errorf("traced are %v after another look", e.tracing)
	}
	must(t, s.Remove(ctx, "k8s.io/7/pod"))
	if len(e.tracing) != 0 {
		t.Errorf("traced are %v after the removal", e.tracing)
	}
}
