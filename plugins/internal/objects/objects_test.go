package objects_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins/internal/objects"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func open(t testing.TB, root string) *objects.Store {
	t.Helper()
	s, err := objects.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func describe(data []byte) toc.Object {
	o := toc.Object{Digest: sha256.Sum256(data), Size: int64(len(data))}
	if len(data) > toc.PieceSize {
		for i := 0; i < len(data); i += toc.PieceSize {
			o.Pieces = append(o.Pieces, sha256.Sum256(data[i:min(i+toc.PieceSize, len(data))]))
		}
	}
	return o
}

func piece(data []byte, i int) []byte {
	return data[i*toc.PieceSize : min((i+1)*toc.PieceSize, len(data))]
}

func count(data []byte) int { return (len(data) + toc.PieceSize - 1) / toc.PieceSize }

// content makes n bytes with holes in it.
func content(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 4096 {
		if r.IntN(3) > 0 {
			for j := i; j < min(i+4096, n); j += 8 {
				b[j] = byte(r.Uint32())
			}
		}
	}
	b[0] = byte(r.Uint32())
	return b
}

func read(t testing.TB, s *objects.Store, d toc.Digest) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Dir(), d.Path()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func entries(t testing.TB, dir string) int {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

func TestPut(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{1, 4095, 4096, 4097, 8192, 100_000, toc.PieceSize} {
		for name, data := range map[string][]byte{"random": content(r, n), "zero": make([]byte, n)} {
			s := open(t, t.TempDir())
			o := describe(data)
			for range 2 {
				if err := s.Put(o, data); err != nil {
					t.Fatal(err)
				}
			}
			if got := read(t, s, o.Digest); !bytes.Equal(got, data) {
				t.Errorf("%s %d: wrong content", name, n)
			}
			if size, ok := s.Size(o.Digest); !ok || size != int64(n) {
				t.Errorf("Size: got %d %v, want %d", size, ok, n)
			}
			if _, n := s.Usage(); n != 1 {
				t.Errorf("Usage: got %d objects, want 1", n)
			}
			st, err := os.Stat(filepath.Join(s.Dir(), o.Digest.Path()))
			if err != nil || st.Mode().Perm() != 0o400 {
				t.Errorf("got mode %v, %v, want 0400", st.Mode(), err)
			}
			if used := st.Sys().(*syscall.Stat_t).Blocks; name == "zero" && n >= 8192 && used > 8 {
				t.Errorf("zeros of %d bytes take %d sectors", n, used)
			}
		}
	}
}

func TestPutRefuses(t *testing.T) {
	s := open(t, t.TempDir())
	data := []byte("content")
	o := describe(data)
	for name, c := range map[string]struct {
		o    toc.Object
		data []byte
		want func(error) bool
	}{
		"wrong content": {o, []byte("Content"), errdefs.IsDataLoss},
		"short":         {o, data[:3], errdefs.IsDataLoss},
		"long":          {o, append(data, 0), errdefs.IsDataLoss},
		"empty":         {toc.Object{Digest: sha256.Sum256(nil)}, nil, errdefs.IsInvalidArgument},
		"negative":      {toc.Object{Digest: o.Digest, Size: -1}, nil, errdefs.IsInvalidArgument},
		"no pieces":     {toc.Object{Digest: o.Digest, Size: toc.PieceSize + 1}, nil, errdefs.IsInvalidArgument},
		"huge":          {toc.Object{Digest: o.Digest, Size: 1<<63 - 1}, nil, errdefs.IsInvalidArgument},
		"pieces":        {toc.Object{Digest: o.Digest, Size: 7, Pieces: []toc.Digest{o.Digest}}, data, errdefs.IsInvalidArgument},
	} {
		if err := s.Put(c.o, c.data); !c.want(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if s.Has(o.Digest) || entries(t, s.PartialDir()) != 0 {
		t.Error("something is left")
	}
}

// TestPieces writes objects in random orders from several writers while readers
// check that they never see a byte that is not right.
func TestPieces(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	s := open(t, t.TempDir())
	for round := range 12 {
		data := content(r, toc.PieceSize*(1+r.IntN(6))+r.IntN(toc.PieceSize))
		o := describe(data)
		var g errgroup.Group
		for reader := range 4 {
			r := rand.New(rand.NewPCG(uint64(round), uint64(reader)))
			g.Go(func() error { return readRandom(s, o, data, r) })
		}
		for writer := range 3 {
			order := r.Perm(count(data))
			if writer == 0 { // the main stream
				for i := range order {
					order[i] = i
				}
			}
			g.Go(func() error {
				w, err := s.Writer(o)
				if err != nil {
					return err
				}
				for _, i := range order {
					if err := w.Piece(i, piece(data, i)); err != nil {
						return err
					}
					if !w.Has(i) {
						return errors.New("piece stored and not there")
					}
				}
				return w.Close()
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(read(t, s, o.Digest), data) {
			t.Fatal("wrong content")
		}
	}
	if n := entries(t, s.PartialDir()); n != 0 {
		t.Errorf("%d partial files left", n)
	}
}

// readRandom reads ranges as the lazy file system does: one descriptor, opened
// as soon as the first range is there.
func readRandom(s *objects.Store, o toc.Object, data []byte, r *rand.Rand) error {
	var f *os.File
	for range 30 {
		off := r.Int64N(o.Size)
		n := min(1+r.Int64N(300_000), o.Size-off)
		if err := s.Wait(context.Background(), o.Digest, off, n); err != nil {
			return err
		}
		if f == nil {
			var err error
			if f, err = os.Open(filepath.Join(s.PartialDir(), o.Digest.Hex())); err != nil {
				if f, err = os.Open(filepath.Join(s.Dir(), o.Digest.Path())); err != nil {
					return err
				}
			}
			defer f.Close()
		}
		got := make([]byte, n)
		if _, err := f.ReadAt(got, off); err != nil {
			return err
		}
		if !bytes.Equal(got, data[off:off+n]) {
			return errors.New("read a wrong byte")
		}
	}
	return nil
}

func TestPieceRefuses(t *testing.T) {
	s := open(t, t.TempDir())
	data := content(rand.New(rand.NewPCG(3, 3)), 2*toc.PieceSize+5)
	o := describe(data)
	w, err := s.Writer(o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	bad := bytes.Clone(piece(data, 1))
	bad[77] ^= 1
	for name, c := range map[string]struct {
		i    int
		data []byte
		want func(error) bool
	}{
		"index":    {3, piece(data, 2), errdefs.IsInvalidArgument},
		"negative": {-1, piece(data, 2), errdefs.IsInvalidArgument},
		"length":   {2, piece(data, 1), errdefs.IsDataLoss},
		"content":  {1, bad, errdefs.IsDataLoss},
		"swapped":  {0, piece(data, 1), errdefs.IsDataLoss},
	} {
		if err := w.Piece(c.i, c.data); !c.want(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for i := range o.Pieces {
		if w.Has(i) {
			t.Errorf("has piece %d", i)
		}
	}
}

// TestWholeIsChecked: pieces that match a piece list which does not match the
// digest. Nobody may see the last of them.
func TestWholeIsChecked(t *testing.T) {
	s := open(t, t.TempDir())
	data := content(rand.New(rand.NewPCG(4, 4)), 3*toc.PieceSize)
	lie := describe(data)
	lie.Digest[9] ^= 1
	for _, order := range [][]int{{0, 1, 2}, {2, 0, 1}, {1, 2, 0}} {
		w, err := s.Writer(lie)
		if err != nil {
			t.Fatal(err)
		}
		res := make(chan error, 1)
		go func() { res <- s.Wait(context.Background(), lie.Digest, int64(order[2])*toc.PieceSize, 1) }()
		for k, i := range order {
			err := w.Piece(i, piece(data, i))
			if k < 2 && err != nil || k == 2 && !errdefs.IsDataLoss(err) {
				t.Fatalf("piece %d: got %v", i, err)
			}
		}
		// A wait that begins after the failure would wait for another try.
		s.Fail(errdefs.ErrDataLoss, lie.Digest)
		if err := waitOrFail(s, res, lie.Digest); !errdefs.IsDataLoss(err) {
			t.Errorf("waiter got %v, want data loss", err)
		}
		if s.Has(lie.Digest) || entries(t, s.PartialDir()) != 0 {
			t.Error("the lie is still there")
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// waitOrFail fails d until the waiter has noticed: it may not have begun to wait.
func waitOrFail(s *objects.Store, res <-chan error, d toc.Digest) error {
	for {
		select {
		case err := <-res:
			return err
		default:
			s.Fail(errdefs.ErrDataLoss, d)
		}
	}
}

func TestLiarsDoNotStay(t *testing.T) {
	s := open(t, t.TempDir())
	data := content(rand.New(rand.NewPCG(5, 5)), 3*toc.PieceSize)
	o := describe(data)
	other := content(rand.New(rand.NewPCG(6, 6)), 3*toc.PieceSize)
	lie := describe(other)
	lie.Digest = o.Digest

	liar, err := s.Writer(lie)
	if err != nil {
		t.Fatal(err)
	}
	if err := liar.Piece(0, piece(other, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Writer(o); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("got %v, want a refusal while the liar writes", err)
	}
	if err := liar.Close(); err != nil {
		t.Fatal(err)
	}
	w, err := s.Writer(o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range o.Pieces {
		if w.Has(i) {
			t.Errorf("piece %d of the liar is still there", i)
		}
		if err := w.Piece(i, piece(data, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, s, o.Digest), data) {
		t.Error("wrong content")
	}
}

func TestResume(t *testing.T) {
	s := open(t, t.TempDir())
	data := content(rand.New(rand.NewPCG(7, 7)), 4*toc.PieceSize)
	o := describe(data)
	w, err := s.Writer(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 2} {
		if err := w.Piece(i, piece(data, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if w, err = s.Writer(o); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, true, false} {
		if w.Has(i) != want {
			t.Errorf("piece %d: got %v, want %v", i, !want, want)
		}
	}
	for _, i := range []int{3, 1} {
		if err := w.Piece(i, piece(data, i)); err != nil {
			t.Fatal(err)
		}
	}
	if !w.Complete() || !bytes.Equal(read(t, s, o.Digest), data) {
		t.Error("not complete or wrong")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWaitEnds(t *testing.T) {
	s := open(t, t.TempDir())
	d := toc.Digest{1}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Wait(ctx, d, 0, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	why := errors.New("given up")
	res := make(chan error, 1)
	go func() { res <- s.Wait(context.Background(), d, 0, 1<<40) }()
	for done := false; !done; {
		select {
		case err := <-res:
			if done = true; !errors.Is(err, why) {
				t.Errorf("got %v, want %v", err, why)
			}
		default:
			s.Fail(why, d)
		}
	}
	for _, c := range [][2]int64{{-1, 1}, {0, 0}, {1, -1}, {1 << 62, 1 << 62}} {
		if err := s.Wait(t.Context(), d, c[0], c[1]); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Wait(%v): got %v", c, err)
		}
	}
}

func TestReopen(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	small, large := []byte("small"), content(rand.New(rand.NewPCG(8, 8)), 2*toc.PieceSize)
	if err := s.Put(describe(small), small); err != nil {
		t.Fatal(err)
	}
	w, err := s.Writer(describe(large))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Piece(0, piece(large, 0)); err != nil {
		t.Fatal(err)
	}
	// What a power failure leaves of an object that was not synced; what is not ours.
	torn := describe([]byte("torn")).Digest
	for _, name := range []string{torn.Path(), "00/junk", "junk"} {
		if err := os.WriteFile(filepath.Join(s.Dir(), name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := open(t, root) // as after kill -9: the first was not closed
	if !again.Has(describe(small).Digest) || again.Has(describe(large).Digest) || again.Has(torn) {
		t.Error("wrong set of objects")
	}
	if got := again.Missing([]toc.Object{describe(small), describe(large)}); len(got) != 1 || got[0] != 1 {
		t.Errorf("Missing: got %v, want [1]", got)
	}
	if entries(t, again.PartialDir()) != 1 {
		t.Error("what there is of the large object has gone")
	}
	b1, n1 := s.Usage()
	b2, n2 := again.Usage()
	if b1 != b2 || n1 != 1 || n2 != 1 {
		t.Errorf("Usage: %d/%d before, %d/%d after", b1, n1, b2, n2)
	}
}

func TestSweep(t *testing.T) {
	s := open(t, t.TempDir())
	r := rand.New(rand.NewPCG(9, 9))
	var ds []toc.Digest
	for range 100 {
		data := content(r, 1+r.IntN(10000))
		if err := s.Put(describe(data), data); err != nil {
			t.Fatal(err)
		}
		ds = append(ds, describe(data).Digest)
	}
	abandoned, writing := content(r, 2*toc.PieceSize), content(r, 2*toc.PieceSize)
	for _, data := range [][]byte{abandoned, writing} {
		w, err := s.Writer(describe(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Piece(1, piece(data, 1)); err != nil {
			t.Fatal(err)
		}
		if &data[0] == &abandoned[0] {
			err = w.Close()
		} else {
			defer w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	release := s.Pin(ds[:10])
	if err := s.Remove(ds[0]); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Remove of a pinned object: got %v", err)
	}
	live := map[toc.Digest]bool{}
	for _, d := range ds[10:30] {
		live[d] = true
	}
	before, _ := s.Usage()
	bytes, n, err := s.Sweep(func(d toc.Digest) bool { return live[d] })
	if err != nil || n != 70 {
		t.Errorf("Sweep: got %d, %v, want 70", n, err)
	}
	if after, left := s.Usage(); left != 30 || before-after != bytes {
		t.Errorf("Usage: %d objects left; %d bytes freed, told %d", left, before-after, bytes)
	}
	for i, d := range ds {
		if s.Has(d) != (i < 30) {
			t.Errorf("object %d: got %v", i, s.Has(d))
		}
	}
	if n := entries(t, s.PartialDir()); n != 1 {
		t.Errorf("%d partial files, want that of the writer", n)
	}
	release()
	release()
	if _, n, err := s.Sweep(func(toc.Digest) bool { return false }); err != nil || n != 30 {
		t.Errorf("Sweep of the rest: got %d, %v", n, err)
	}
	if b, n := s.Usage(); b != 0 || n != 0 {
		t.Errorf("Usage: got %d, %d, want 0", b, n)
	}
}

// TestSweepAgainstPut: whatever the order, the set and the disk agree.
func TestSweepAgainstPut(t *testing.T) {
	s := open(t, t.TempDir())
	data := []byte("wanted and not wanted")
	o := describe(data)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				if err := s.Put(o, data); err != nil {
					t.Error(err)
				}
				if _, _, err := s.Sweep(func(toc.Digest) bool { return false }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	release := s.Pin([]toc.Digest{o.Digest})
	defer release()
	if err := s.Put(o, data); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, s, o.Digest), data) {
		t.Error("wrong content")
	}
}

func TestVerify(t *testing.T) {
	s := open(t, t.TempDir())
	var ds []toc.Digest
	for i := range 20 {
		data := bytes.Repeat([]byte{byte(i + 1)}, 5000)
		if err := s.Put(describe(data), data); err != nil {
			t.Fatal(err)
		}
		ds = append(ds, describe(data).Digest)
	}
	path := filepath.Join(s.Dir(), ds[3].Path())
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(s.Dir(), ds[7].Path())); err != nil {
		t.Fatal(err)
	}
	defer s.Pin(ds)()
	bad, err := s.Verify(t.Context(), append(ds, toc.Digest{1}))
	if err != nil || len(bad) != 2 {
		t.Fatalf("got %d bad, %v, want 2", len(bad), err)
	}
	for i, d := range ds {
		if s.Has(d) != (i != 3 && i != 7) {
			t.Errorf("object %d: got %v", i, s.Has(d))
		}
	}
}

// TestFullDisk fills a small tmpfs.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, fmt.Sprintf("size=%d", 3*toc.PieceSize)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := open(t, root)
	data := bytes.Repeat([]byte{1}, 4*toc.PieceSize)
	o := describe(data)
	w, err := s.Writer(o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range o.Pieces {
		if err = w.Piece(i, piece(data, i)); err != nil {
			break
		}
	}
	if !errdefs.IsResourceExhausted(err) || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v, want a full disk", err)
	}
	small := bytes.Repeat([]byte{2}, toc.PieceSize)
	if err := s.Put(describe(small), small); !errdefs.IsResourceExhausted(err) {
		t.Fatalf("got %v, want a full disk", err)
	}
	if n := entries(t, s.PartialDir()); n != 1 {
		t.Errorf("%d partial files, want 1", n)
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	for i := range o.Pieces {
		if err := w.Piece(i, piece(data, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, s, o.Digest), data) {
		t.Error("wrong content")
	}
}

// TestManyLargeObjects has more objects half written than files may be open.
func TestManyLargeObjects(t *testing.T) {
	s := open(t, t.TempDir())
	type job struct {
		w    *objects.Writer
		data []byte
	}
	var jobs []job
	for i := range 100 {
		data := make([]byte, toc.PieceSize+1)
		data[0], data[toc.PieceSize] = byte(i), 1
		w, err := s.Writer(describe(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Piece(0, piece(data, 0)); err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, job{w, data})
	}
	open := 0
	for fd := range 1024 {
		link, err := os.Readlink(filepath.Join("/proc/self/fd", strconv.Itoa(fd)))
		if err == nil && filepath.Dir(link) == s.PartialDir() {
			open++
		}
	}
	if open == 0 || open > 64 {
		t.Errorf("%d partial files open, want 1 to 64", open)
	}
	for _, j := range jobs {
		if err := errors.Join(j.w.Piece(1, piece(j.data, 1)), j.w.Close()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(read(t, s, describe(j.data).Digest), j.data) {
			t.Error("wrong content")
		}
	}
}
