package lazyfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// parentCommand makes the test binary a parent that can be killed: arguments are
// the root of a rig.
const parentCommand = "test-parent"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case ChildCommand:
			os.Exit(Main(os.Args[2:]))
		case parentCommand:
			os.Exit(parentMain(os.Args[2]))
		}
	}
	os.Exit(m.Run())
}

// parentMain serves until it is killed. What it is asked for never comes.
func parentMain(root string) int {
	_, err := Start(context.Background(), config(root, newSource()))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("started")
	select {}
}

// source is a Source that the test feeds.
type source struct {
	asked chan toc.Digest // each Range, if somebody listens

	mu      sync.Mutex // guards the following
	arrived map[toc.Digest]error
	active  map[toc.Digest]int // Ranges that block
	ended   map[toc.Digest]int // Ranges whose context ended
	change  chan struct{}      // closed when one of the maps changes
}

func newSource() *source {
	return &source{
		asked: make(chan toc.Digest, 10000), arrived: map[toc.Digest]error{},
		active: map[toc.Digest]int{}, ended: map[toc.Digest]int{}, change: make(chan struct{}),
	}
}

func (s *source) Range(ctx context.Context, d toc.Digest, _, _ int64) error {
	s.asked <- d
	s.update(func() { s.active[d]++ })
	defer s.update(func() { s.active[d]-- })
	for {
		s.mu.Lock()
		err, ok := s.arrived[d]
		change := s.change
		s.mu.Unlock()
		if ok {
			return err
		}
		select {
		case <-change:
		case <-ctx.Done():
			s.update(func() { s.ended[d]++ })
			return ctx.Err()
		}
	}
}

func (s *source) update(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	close(s.change)
	s.change = make(chan struct{})
}

// done ends all Ranges of d.
func (s *source) done(d toc.Digest, err error) { s.update(func() { s.arrived[d] = err }) }

// until waits for a condition on the maps.
func (s *source) until(cond func() bool) {
	for {
		s.mu.Lock()
		ok, change := cond(), s.change
		s.mu.Unlock()
		if ok {
			return
		}
		<-change
	}
}

func config(root string, src Source) Config {
	return Config{
		Dir: filepath.Join(root, "lazy"), State: filepath.Join(root, "state"),
		Objects: filepath.Join(root, "objects"), Partial: filepath.Join(root, "partial"), Source: src,
	}
}

// rig is a root with a running server.
type rig struct {
	testing.TB
	root string
	src  *source
	srv  *Server
}

func newRoot(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	root := t.TempDir()
	for _, dir := range []string{"objects", "partial"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{TB: t, root: newRoot(t)}
	r.start(func(*Config) {})
	return r
}

// start starts a server, which is shut down at the end of the test.
func (r *rig) start(change func(*Config)) {
	r.Helper()
	r.src = newSource()
	c := config(r.root, r.src)
	change(&c)
	srv, err := Start(r.Context(), c)
	if err != nil {
		r.Fatal(err)
	}
	r.srv = srv
	r.Cleanup(func() {
		if err := srv.Shutdown(); err != nil {
			r.Error(err)
		}
	})
}

func object(data []byte) toc.Object {
	return toc.Object{Digest: sha256.Sum256(data), Size: int64(len(data))}
}

// index makes contents known.
func (r *rig) index(name string, contents ...[]byte) {
	r.Helper()
	var objs []toc.Object
	for _, c := range contents {
		objs = append(objs, object(c))
	}
	if err := WriteIndex(IndexPath(filepath.Join(r.root, "state"), name), objs); err != nil {
		r.Fatal(err)
	}
}

// arrive makes an object complete without telling anybody.
func (r *rig) arrive(data []byte) {
	r.Helper()
	path := filepath.Join(r.root, "objects", object(data).Digest.Path())
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path+".tmp", data, 0o400), os.Rename(path+".tmp", path)); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) path(data []byte) string {
	return filepath.Join(r.root, "lazy", object(data).Digest.Path())
}

// reading starts cat on an object and returns when the source has been asked.
func (r *rig) reading(data []byte) *exec.Cmd {
	r.Helper()
	cmd := r.cat(data)
	for want := object(data).Digest; <-r.src.asked != want; { // others may be asked for in parts
	}
	return cmd
}

func (r *rig) cat(data []byte) *exec.Cmd {
	r.Helper()
	cmd := exec.Command("cat", r.path(data))
	cmd.Stdout = new(bytes.Buffer)
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	return cmd
}

// got waits for cat.
func (r *rig) got(cmd *exec.Cmd, data []byte) {
	r.Helper()
	err := cmd.Wait()
	if out := cmd.Stdout.(*bytes.Buffer).Bytes(); err != nil || !bytes.Equal(out, data) {
		r.Errorf("reader: %v, %d bytes, want %d right ones", err, len(out), len(data))
	}
}

func (r *rig) pid() int {
	r.srv.mu.Lock()
	defer r.srv.mu.Unlock()
	if r.srv.child == nil {
		return 0
	}
	return r.srv.child.pid
}

func contents(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func TestLookup(t *testing.T) {
	r := newRig(t)
	known, local, later := contents(1, 12345), contents(2, 50), contents(3, 60)
	r.index("a", known)
	r.arrive(local)
	for _, c := range []struct {
		path string
		size int64
		err  error
	}{
		{object(known).Digest.Path(), 12345, nil},
		{object(local).Digest.Path(), 50, nil},
		{object(later).Digest.Path(), 0, os.ErrNotExist},
		{"zz", 0, os.ErrNotExist},
		{"AA", 0, os.ErrNotExist},
		{"aab", 0, os.ErrNotExist},
		{"aa/" + strings.Repeat("A", 62), 0, os.ErrNotExist},
		{"aa/b", 0, os.ErrNotExist},
	} {
		st, err := os.Stat(filepath.Join(r.root, "lazy", c.path))
		if !errors.Is(err, c.err) || err == nil && st.Size() != c.size {
			t.Errorf("%s: got %v, %v, want %d, %v", c.path, st, err, c.size, c.err)
		}
	}
	// Failure is not remembered.
	r.index("b", later)
	if st, err := os.Stat(r.path(later)); err != nil || st.Size() != 60 {
		t.Errorf("got %v, %v", st, err)
	}
	if err := os.WriteFile(r.path(known), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing: got %v, want a read-only file system", err)
	}
}

func TestCollision(t *testing.T) {
	k := known{dir: t.TempDir(), maps: map[string]*mapping{}}
	a, b := toc.Digest{1, 2, 3, 4, 5, 6, 7, 8, 9}, toc.Digest{1, 2, 3, 4, 5, 6, 7, 8, 10}
	write := func(name string, d toc.Digest) {
		if err := WriteIndex(filepath.Join(k.dir, name+indexSuffix), []toc.Object{{Digest: d, Size: 1}, {Digest: d, Size: 1}}); err != nil {
			t.Fatal(err)
		}
		if err := k.scan(); err != nil {
			t.Fatal(err)
		}
	}
	write("one", a)
	write("same", a)
	if d, size, err := k.find(nodeOf(a)); d != a || size != 1 || err != nil {
		t.Errorf("got %s, %d, %v", d, size, err)
	}
	write("two", b)
	n := &nodes{objects: -1}
	n.known.dir, n.known.maps = k.dir, k.maps
	for _, d := range []toc.Digest{a, b} {
		if _, err := n.lookup(d); !errors.Is(err, errCollision) {
			t.Errorf("got %v, want a refusal", err)
		}
	}
}

func TestScanLeavesOutBrokenFiles(t *testing.T) {
	k := known{dir: t.TempDir(), maps: map[string]*mapping{}}
	for name, data := range map[string]string{
		"empty": "", "short": "SLINDEX1", "magic": "SLINDEX0\x00\x00\x00\x00\x00\x00\x00\x00",
		"count": "SLINDEX1\x01\x00\x00\x00\x00\x00\x00\x00", "overflow": "SLINDEX1\xff\xff\xff\xff\xff\xff\xff\xff",
	} {
		if err := os.WriteFile(filepath.Join(k.dir, name+indexSuffix), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := toc.Object{Digest: toc.Digest{7}, Size: 3}
	if err := WriteIndex(filepath.Join(k.dir, "good.idx"), []toc.Object{o}); err != nil {
		t.Fatal(err)
	}
	if err := k.scan(); err == nil || len(k.maps) != 1 {
		t.Errorf("got %v and %d files, want errors and 1", err, len(k.maps))
	}
	if _, size, err := k.find(nodeOf(o.Digest)); size != 3 || err != nil {
		t.Errorf("got %d, %v", size, err)
	}
	if err := os.Remove(filepath.Join(k.dir, "good.idx")); err != nil {
		t.Fatal(err)
	}
	_ = k.scan()
	if _, _, err := k.find(nodeOf(o.Digest)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want not found", err)
	}
}

// TestRead: what is complete, what arrives whole, what arrives in part.
func TestRead(t *testing.T) {
	r := newRig(t)
	whole, waits, part := contents(1, 100_000), contents(2, 3<<20+17), contents(3, 4<<20)
	r.index("a", whole, waits, part)
	r.arrive(whole)
	if got, err := os.ReadFile(r.path(whole)); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("complete object: %d bytes, %v", len(got), err)
	}

	cmd := r.reading(waits)
	r.arrive(waits)
	r.src.done(object(waits).Digest, nil)
	r.got(cmd, waits)

	// Only the second half is there; the first half would read as zeros.
	d := object(part).Digest
	f, err := os.OpenFile(filepath.Join(r.root, "partial", d.Hex()), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(part[2<<20:], 2<<20); err != nil {
		t.Fatal(err)
	}
	r.src.done(d, nil)
	lf, err := os.Open(r.path(part))
	if err != nil {
		t.Fatal(err)
	}
	defer lf.Close()
	got := make([]byte, 10_000)
	if _, err := lf.ReadAt(got, 3<<20); err != nil || !bytes.Equal(got, part[3<<20:][:10_000]) {
		t.Errorf("partial object: %v", err)
	}
	if n, err := lf.ReadAt(got, 4<<20); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: got %d, %v", n, err)
	}
	// Given up and begun anew: the descriptor of the child is of the wrong file.
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.Name(), part, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lf.ReadAt(got, 5000); err != nil || !bytes.Equal(got, part[5000:][:10_000]) {
		t.Errorf("partial object begun anew: wrong bytes or %v", err)
	}
}

func TestMmap(t *testing.T) {
	r := newRig(t)
	data := contents(1, 300_000)
	r.index("a", data)
	f, err := os.Open(r.path(data))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, len(data), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	res := make(chan bool)
	go func() { res <- bytes.Equal(m, data) }()
	<-r.src.asked
	r.arrive(data)
	r.src.done(object(data).Digest, nil)
	if !<-res {
		t.Error("wrong bytes in memory")
	}
	if err := unix.Munmap(m); err != nil {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	r := newRig(t)
	for i, c := range []struct {
		err  error
		want unix.Errno
	}{
		{errors.New("given up"), unix.EIO},
		{fmt.Errorf("removed: %w", errdefs.ErrNotFound), unix.ENOENT},
		{context.DeadlineExceeded, unix.EIO},
		{nil, unix.EIO}, // says that it is there, and it is not
	} {
		data := contents(uint64(i), 1000)
		r.index(fmt.Sprint(i), data)
		r.src.done(object(data).Digest, c.err)
		if _, err := os.ReadFile(r.path(data)); !errors.Is(err, c.want) {
			t.Errorf("%v: got %v, want %v", c.err, err, c.want)
		}
	}
}

// TestBlockedReaders: they die at once when they are killed, and do not keep back
// others, however many there are.
func TestBlockedReaders(t *testing.T) {
	r := newRig(t)
	all := [][]byte{contents(1000, 200_000)}
	for i := range 300 {
		all = append(all, contents(uint64(i), 200_000))
	}
	r.index("a", all...)
	var g errgroup.Group
	for _, data := range all[1:] {
		g.Go(func() error {
			got, err := os.ReadFile(r.path(data))
			if err == nil && !bytes.Equal(got, data) {
				err = errors.New("wrong bytes")
			}
			return err
		})
	}
	for range all[1:] {
		<-r.src.asked
	}
	r.arrive(all[0])
	if got, err := os.ReadFile(r.path(all[0])); err != nil || !bytes.Equal(got, all[0]) {
		t.Errorf("local object behind blocked ones: %v", err)
	}
	for _, data := range all[1:] {
		r.arrive(data)
		r.src.done(object(data).Digest, nil)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func TestKilledReader(t *testing.T) {
	r := newRig(t)
	data := contents(1, 100)
	r.index("a", data)
	for _, direct := range []bool{false, true} {
		args := []string{"if=" + r.path(data), "of=/dev/null"}
		if direct {
			args = append(args, "iflag=direct", "bs=4096") // a request of its own, which is interrupted
		}
		cmd := exec.Command("dd", args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-r.src.asked
		began := time.Now()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("direct %v: took %v to die", direct, took)
		}
	}
	r.arrive(data)
	r.src.done(object(data).Digest, nil)
	r.got(r.cat(data), data)
}

// TestChildDies: readers do not notice, however often it does.
func TestChildDies(t *testing.T) {
	r := newRig(t)
	if !r.srv.resend {
		t.Skip("the kernel cannot send requests again (before 6.9)")
	}
	type reader struct {
		data []byte
		cmd  *exec.Cmd
	}
	var readers []reader
	held := contents(100, 70_000)
	r.index("held", held)
	f, err := os.Open(r.path(held))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range 3 {
		large, small := contents(uint64(2*i), 2<<20), contents(uint64(2*i+1), 100)
		r.index(fmt.Sprint(i), large, small)
		readers = append(readers, reader{small, r.cat(small)}, reader{large, r.cat(large)})
		all := func(of map[toc.Digest]int, min func(toc.Digest) int) func() bool {
			return func() bool {
				return !slices.ContainsFunc(readers, func(rd reader) bool {
					d := object(rd.data).Digest
					return of[d] < min(d)
				})
			}
		}
		one := func(toc.Digest) int { return 1 }
		r.src.until(all(r.src.active, one))
		old := r.pid()
		r.src.mu.Lock()
		before := maps.Clone(r.src.ended)
		r.src.mu.Unlock()
		if err := unix.Kill(old, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// What was asked for is asked for again, by the new child.
		r.src.until(all(r.src.ended, func(d toc.Digest) int { return before[d] + 1 }))
		r.src.until(all(r.src.active, one))
		if r.pid() == old {
			t.Error("the child is the old one")
		}
	}
	for _, rd := range readers {
		r.arrive(rd.data)
		r.src.done(object(rd.data).Digest, nil)
		r.got(rd.cmd, rd.data)
	}
	r.arrive(held)
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, held) {
		t.Errorf("file opened under the first child: %v", err)
	}
}

// TestParentDies: local objects are served, other readers wait for the next parent.
func TestParentDies(t *testing.T) { testNewParent(t, "/proc/self/exe") }

// TestUpgrade: the child is of another binary than the next parent, which replaces it.
func TestUpgrade(t *testing.T) {
	old := filepath.Join(t.TempDir(), "old")
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(old, b, 0o700); err != nil {
		t.Fatal(err)
	}
	testNewParent(t, old)
}

func testNewParent(t *testing.T, binary string) {
	r := &rig{TB: t, root: newRoot(t)}
	parent := exec.Command(binary, parentCommand, r.root)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 100)
	if n, err := out.Read(line); err != nil || string(line[:n]) != "started\n" {
		t.Fatalf("parent: %q, %v", line[:n], err)
	}
	a, b, local := contents(1, 2<<20), contents(2, 100), contents(3, 5000)
	r.index("a", a, b, local)
	r.arrive(local)
	first := r.cat(a)
	if err := parent.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	second := r.cat(b)
	if got, err := os.ReadFile(r.path(local)); err != nil || !bytes.Equal(got, local) {
		t.Errorf("local object without a parent: %v", err)
	}
	r.start(func(*Config) {})
	if !r.srv.Reconnected() {
		t.Error("not reconnected")
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", r.pid()))
	if self, _ := os.Readlink("/proc/self/exe"); r.srv.resend && (err != nil || exe != self) {
		t.Errorf("the child runs %q, %v, want %q", exe, err, self)
	}
	for seen := map[toc.Digest]bool{}; len(seen) < 2; {
		seen[<-r.src.asked] = true
	}
	for _, data := range [][]byte{a, b} {
		r.arrive(data)
		r.src.done(object(data).Digest, nil)
	}
	r.got(first, a)
	r.got(second, b)
}

// TestClose: an orderly restart, with a blocked reader.
func TestClose(t *testing.T) {
	r := newRig(t)
	data := contents(1, 100)
	r.index("a", data)
	cmd := r.reading(data)
	pid := r.pid()
	if err := r.srv.Close(); err != nil {
		t.Fatal(err)
	}
	r.start(func(*Config) {})
	if !r.srv.Reconnected() || r.pid() != pid {
		t.Errorf("reconnected %v, child %d, want %d", r.srv.Reconnected(), r.pid(), pid)
	}
	if d := <-r.src.asked; d != object(data).Digest {
		t.Errorf("asked for %s", d)
	}
	r.arrive(data)
	r.src.done(object(data).Digest, nil)
	r.got(cmd, data)
}

// TestRemount: kernels that cannot send again.
func TestRemount(t *testing.T) {
	r := &rig{TB: t, root: newRoot(t)}
	remounted := make(chan struct{}, 1)
	r.start(func(c *Config) {
		c.noResend = true
		c.OnRemount = func() { remounted <- struct{}{} }
	})
	data := contents(1, 100)
	r.index("a", data)
	cmd := r.reading(data)
	if err := unix.Kill(r.pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the blocked reader has not failed")
	}
	<-remounted
	cmd = r.reading(data)
	r.arrive(data)
	r.src.done(object(data).Digest, nil)
	r.got(cmd, data)
}

func TestShutdown(t *testing.T) {
	r := newRig(t)
	child, err := unix.PidfdOpen(r.pid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	if err := r.srv.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if _, mounted, err := device(filepath.Join(r.root, "lazy")); mounted || err != nil {
		t.Errorf("mounted %v, %v", mounted, err)
	}
	// Readable as soon as the process has ended, reaped or not.
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(child), Events: unix.POLLIN}}, 0); n != 1 || err != nil {
		t.Errorf("the child is alive: %d, %v", n, err)
	}
}

// TestManyObjects reads more objects than the child keeps open, and looks at its memory.
func TestManyObjects(t *testing.T) {
	r := newRig(t)
	const n = 10_000
	var all [][]byte
	for i := range n {
		data := make([]byte, 100)
		binary.LittleEndian.PutUint32(data, uint32(i))
		all = append(all, data)
	}
	r.index("a", all...)
	var g errgroup.Group
	g.SetLimit(32)
	for i, data := range all {
		if i%2 == 0 {
			r.arrive(data)
		} else {
			if err := os.WriteFile(filepath.Join(r.root, "partial", object(data).Digest.Hex()), data, 0o600); err != nil {
				t.Fatal(err)
			}
			r.src.done(object(data).Digest, nil)
		}
		g.Go(func() error {
			got, err := os.ReadFile(r.path(data))
			if err == nil && !bytes.Equal(got, data) {
				err = errors.New("wrong bytes")
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.pid()))
	if err != nil || len(fds) > maxFiles+30 {
		t.Errorf("the child has %d descriptors, %v", len(fds), err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.pid()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "Rss") || strings.HasPrefix(line, "VmHWM") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// BenchmarkOpenRead opens and reads complete objects of 4 KiB, cold.
func BenchmarkOpenRead(b *testing.B) {
	r := newRig(b)
	var all [][]byte
	for i := range 5000 {
		all = append(all, contents(uint64(i), 4096))
		r.arrive(all[i])
	}
	r.index("a", all...)
	b.ResetTimer()
	for i := range b.N {
		if i%len(all) == 0 {
			b.StopTimer()
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		if _, err := os.ReadFile(r.path(all[i%len(all)])); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSequential reads one complete object of 64 MiB, its page cache dropped.
func BenchmarkSequential(b *testing.B) {
	r := newRig(b)
	data := contents(1, 64<<20)
	r.arrive(data)
	r.index("a", data)
	b.SetBytes(int64(len(data)))
	f, err := os.Open(r.path(data))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for b.Loop() {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{io.NewSectionReader(f, 0, int64(len(data)))}); err != nil {
			b.Fatal(err)
		}
	}
}
