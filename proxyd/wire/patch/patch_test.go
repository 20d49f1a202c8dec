package patch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

var update = flag.Bool("update", false, "write the golden files")

// noise returns n bytes that do not compress and are always the same.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// edited returns old with n random changes: bytes set, cut, moved, put in, repeated.
func edited(old []byte, seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	b := bytes.Clone(old)
	for range n {
		at := r.IntN(len(b) + 1)
		end := min(len(b), at+r.IntN(1+len(b)/8))
		switch r.IntN(5) {
		case 0:
			for i := at; i < end; i += 1 + r.IntN(64) {
				b[i] += byte(1 + r.IntN(255))
			}
		case 1:
			b = slices.Delete(b, at, end)
		case 2:
			b = slices.Insert(b, at, noise(seed, r.IntN(2000))...)
		case 3:
			b = slices.Insert(b, at, bytes.Clone(b[at:end])...)
		case 4:
			part := bytes.Clone(b[at:end])
			b = slices.Delete(b, at, end)
			b = slices.Insert(b, r.IntN(len(b)+1), part...)
		}
	}
	return b
}

type pair struct {
	name    string
	old, nw []byte
}

// pairs are of all kinds that matter; the same in every run.
func pairs() []pair {
	text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog. "), 50_000)
	big := noise(1, 3*PieceSize+12345)
	out := []pair{
		{"both empty", nil, nil},
		{"old empty", nil, noise(1, 1000)},
		{"new empty", noise(1, 1000), nil},
		{"tiny", []byte("abc"), []byte("abd")},
		{"same", big, big},
		{"one piece exactly", big[:PieceSize], big[1 : PieceSize+1]},
		{"nothing in common", noise(2, 300_000), noise(3, 300_000)},
		{"shorter", big, big[PieceSize+7:]},
		{"longer", big[PieceSize+7:], big},
		{"halves swapped", big, append(bytes.Clone(big[2*PieceSize:]), big[:2*PieceSize]...)},
		{"runs", make([]byte, 2_000_000), append(make([]byte, 1_000_000), bytes.Repeat([]byte{1}, 1_500_000)...)},
		{"repetitive", text, edited(text, 1, 20)},
		{"program x86-64", testProgram(machineX86, 0), testProgram(machineX86, 1)},
		{"program aarch64", testProgram(machineARM64, 0), testProgram(machineARM64, 1)},
	}
	for seed := range uint64(12) {
		old := noise(seed, 1<<(8+seed))
		out = append(out, pair{fmt.Sprintf("edited %d", seed), old, edited(old, seed, 1+int(seed)*2)})
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	for _, p := range pairs() {
		for name, o := range map[string]Options{
			"hd":      {Method: HD},
			"rd":      {Method: RD, Passes: 3},
			"strong":  {Lazy: -1, Step: 1},
			"near":    {Method: HD, Ahead: 1},
			"windows": {Method: RD, Memory: 1}, // the least that it can do with
		} {
			t.Run(p.name+"/"+name, func(t *testing.T) { roundTrip(t, p.old, p.nw, o) })
		}
	}
}

func roundTrip(t testing.TB, old, nw []byte, o Options) made {
	t.Helper()
	p := makePatch(t, bytes.NewReader(old), bytes.NewReader(nw), int64(len(old)), int64(len(nw)), o)
	if len(p.segments) != pieces(int64(len(nw))) || len(p.head) > MaxHead {
		t.Fatalf("%d segments for %d bytes, head of %d", len(p.segments), len(nw), len(p.head))
	}
	a, err := NewApplier(bytes.NewReader(old), int64(len(old)), int64(len(nw)), p.head, GoodMemory)
	if err != nil {
		t.Fatal(err)
	}
	appliers := []*Applier{a, a.Fork()}
	for k := range p.segments {
		i := len(p.segments) - 1 - k // any order will do
		if n := pieceLen(int64(len(nw)), i); len(p.segments[i]) > n+1 {
			t.Errorf("segment of %d bytes for a piece of %d", len(p.segments[i]), n)
		}
		got, err := appliers[k%2].Apply([]byte("before"), i, p.segments[i])
		if err != nil {
			t.Fatalf("piece %d: %v", i, err)
		}
		want := nw[i*PieceSize : min(len(nw), (i+1)*PieceSize)]
		if !bytes.HasPrefix(got, []byte("before")) || !bytes.Equal(got[6:], want) {
			t.Fatalf("piece %d is not what was patched", i)
		}
	}
	return p
}

// TestBorders: what moved and was changed here and there is found although nothing in its
// piece shows that it moved, as what comes after the piece does.
func TestBorders(t *testing.T) {
	const moved, region = 1000, 60 << 10
	old := noise(7, 2*groupSize)
	nw := slices.Concat(old[:PieceSize-region], old[PieceSize-region+moved:])
	for i := PieceSize - region; i < PieceSize; i += 3 {
		nw[i]++ // never 16 bytes in a row that could be found
	}
	for _, m := range []Method{HD, RD} {
		p := roundTrip(t, old, nw, Options{Method: m})
		parts, err := cut(p.segments[0][1:])
		if err != nil {
			t.Fatal(err)
		}
		if n := len(parts.literal); n > region/100 {
			t.Errorf("method %d: %d new bytes in the piece, want those of %d that were changed as values", m, n, region)
		}
	}
}

// TestSkip: what nobody needs is not made, and the others are as good.
func TestSkip(t *testing.T) {
	old := noise(8, 12*PieceSize)
	nw := edited(old, 3, 50)
	for _, m := range []Method{HD, RD} {
		needed := func(piece int) bool { return piece < 1 || piece > 8 }
		a, err := NewApplier(bytes.NewReader(old), int64(len(old)), int64(len(nw)), nil, GoodMemory)
		if err != nil {
			t.Fatal(err)
		}
		var made []int
		err = Encode(t.Context(), bytes.NewReader(old), bytes.NewReader(nw), int64(len(old)), int64(len(nw)),
			Options{Method: m, Skip: func(piece int) bool { return !needed(piece) }},
			func(piece int, s []byte) error {
				made = append(made, piece)
				got, err := a.Apply(nil, piece, s)
				if !bytes.Equal(got, nw[piece*PieceSize:min(len(nw), (piece+1)*PieceSize)]) || len(s) > PieceSize/8 {
					t.Errorf("piece %d is not what was patched, or not small: %d bytes", piece, len(s))
				}
				return err
			})
		var want []int
		for i := range pieces(int64(len(nw))) {
			if needed(i) {
				want = append(want, i)
			}
		}
		if err != nil || !slices.Equal(made, want) {
			t.Errorf("error %v, got segments of pieces %v, want %v", err, made, want)
		}
	}
}

// TestAhead: the first segment does not wait until all of the old file was read, and what
// moved less than that is found all the same.
func TestAhead(t *testing.T) {
	const ahead, moved = 1 << 20, 300 << 10
	old := noise(8, 16<<20)
	nw := slices.Concat(old[moved:], noise(9, moved))
	var read int64
	counting := readerAtFunc(func(b []byte, off int64) (int, error) {
		read = max(read, off+int64(len(b)))
		return bytes.NewReader(old).ReadAt(b, off)
	})
	size, before := 0, false
	err := Encode(t.Context(), counting, bytes.NewReader(nw), int64(len(old)), int64(len(nw)), Options{Method: HD, Ahead: ahead},
		func(piece int, s []byte) error {
			size += len(s)
			before = before || piece == 0 && read <= groupSize+ahead+2<<20
			return nil
		})
	if err != nil || !before {
		t.Errorf("error %v, or %d bytes of the old file were read before the first segment", err, read)
	}
	if size > moved+64<<10 {
		t.Errorf("got a patch of %d bytes, want hardly more than the %d that are new", size, moved)
	}
}

func (p made) bytes() (n int) {
	for _, s := range p.segments {
		n += len(s)
	}
	return n + len(p.head)
}

// What is found does not depend on luck: these are far below the sizes of the files.
func TestSmall(t *testing.T) {
	big := noise(1, 4*PieceSize)
	for _, c := range []struct {
		name string
		pair pair
		o    Options
		most int
	}{
		{"same", pair{old: big, nw: big}, Options{}, 4 * 20},
		{"shifted", pair{old: big, nw: append([]byte("0123456789"), big...)}, Options{}, 150},
		{"swapped", pair{old: big, nw: append(bytes.Clone(big[3*PieceSize/2:]), big[:3*PieceSize/2]...)}, Options{}, 150},
		{"sparse", pair{old: big, nw: func() []byte {
			b := bytes.Clone(big)
			for i := 0; i < len(b); i += 100 {
				b[i]++
			}
			return b
		}()}, Options{}, 4 * PieceSize / 100 * 21 / 10},
		{"x86-64 moved", pair{old: testProgram(machineX86, 0), nw: testProgram(machineX86, 1)}, Options{Method: RD}, 12_000},
		{"aarch64 moved", pair{old: testProgram(machineARM64, 0), nw: testProgram(machineARM64, 1)}, Options{Method: RD}, 12_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := roundTrip(t, c.pair.old, c.pair.nw, c.o)
			if n := p.bytes(); n > c.most {
				t.Errorf("%d bytes, want at most %d", n, c.most)
			}
			if c.o.Method != RD {
				return
			}
			hd := roundTrip(t, c.pair.old, c.pair.nw, Options{Method: HD})
			if 3*p.bytes() > hd.bytes() {
				t.Errorf("rd makes %d bytes where hd makes %d", p.bytes(), hd.bytes())
			}
		})
	}
}

// FuzzRoundTrip makes patches of what the fuzzer comes up with.
func FuzzRoundTrip(f *testing.F) {
	for _, p := range pairs() {
		if len(p.old)+len(p.nw) < 10_000 {
			f.Add(p.old, p.nw, 0)
		}
	}
	f.Fuzz(func(t *testing.T, old, nw []byte, lazy int) {
		roundTrip(t, old, nw, Options{Lazy: lazy, Step: 1})
	})
}

// golden is a patch in a file: its parts, the head first, each after its length.
func golden(q made) []byte {
	var b []byte
	for _, part := range append([][]byte{q.head}, q.segments...) {
		b = append(binary.AppendUvarint(b, uint64(len(part))), part...)
	}
	return b
}

func split(t *testing.T, b []byte) (head []byte, segments [][]byte) {
	t.Helper()
	for len(b) > 0 {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			t.Fatal("a golden file is cut off")
		}
		segments = append(segments, b[k:k+int(n)])
		b = b[k+int(n):]
	}
	return segments[0], segments[1:]
}

// TestGolden: what is stored and sent today must be applied by later versions.
func TestGolden(t *testing.T) {
	for _, p := range pairs() {
		if len(p.nw) == 0 || len(p.old)+len(p.nw) > 700_000 {
			continue
		}
		for name, m := range map[string]Method{"hd": HD, "rd": RD} {
			file := filepath.Join("testdata", strings.ReplaceAll(p.name, " ", "-")+"."+name)
			if *update {
				q := roundTrip(t, p.old, p.nw, Options{Method: m})
				if m == RD && len(q.head) == 0 || q.bytes() > 20_000 {
					continue
				}
				writeFile(t, file, golden(q))
			}
			b, err := os.ReadFile(file)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			head, segments := split(t, b)
			a, err := NewApplier(bytes.NewReader(p.old), int64(len(p.old)), int64(len(p.nw)), head, GoodMemory)
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			for i, seg := range segments {
				if got, err = a.Apply(got, i, seg); err != nil {
					break
				}
			}
			if err != nil || !bytes.Equal(got, p.nw) {
				t.Errorf("%s is not applied as it was: %v", file, err)
			}
		}
	}
	files, err := filepath.Glob("testdata/*.[hr]d")
	if err != nil || len(files) < 10 {
		t.Errorf("%d golden files: %v", len(files), err)
	}
}

func writeFile(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// FuzzApply feeds an Applier anything: no panic, no more than the piece.
func FuzzApply(f *testing.F) {
	for _, p := range pairs() {
		if len(p.nw) == 0 || len(p.nw) > PieceSize {
			continue
		}
		if q := makePatch(f, bytes.NewReader(p.old), bytes.NewReader(p.nw), int64(len(p.old)), int64(len(p.nw)), Options{Method: RD}); q.bytes() < 20_000 {
			f.Add(q.head, q.segments[0], int64(len(p.old)), int64(len(p.nw)))
		}
	}
	old := testProgram(machineX86, 0)
	old = append(old, noise(1, 1<<20)...)
	f.Fuzz(func(t *testing.T, head, segment []byte, oldSize, newSize int64) {
		oldSize = min(oldSize, int64(len(old)))
		a, err := NewApplier(bytes.NewReader(old), oldSize, newSize, head, GoodMemory)
		if err != nil {
			requireInvalid(t, err)
			return
		}
		got, err := a.Apply(nil, 0, segment)
		if err != nil {
			requireInvalid(t, err)
		} else if len(got) != pieceLen(newSize, 0) {
			t.Fatalf("%d bytes of a piece of %d", len(got), pieceLen(newSize, 0))
		}
	})
}

func requireInvalid(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrInvalid) {
		t.Fatalf("error %v does not wrap ErrInvalid", err)
	}
}

// TestDamaged: every prefix and every flipped byte is an error, or makes a whole piece.
func TestDamaged(t *testing.T) {
	old, nw := testProgram(machineX86, 0), testProgram(machineX86, 1)
	p := roundTrip(t, old, nw, Options{Method: RD})
	try := func(head, segment []byte) {
		a, err := NewApplier(bytes.NewReader(old), int64(len(old)), int64(len(nw)), head, GoodMemory)
		var got []byte
		if err == nil {
			got, err = a.Apply(nil, 0, segment)
		}
		if err != nil {
			requireInvalid(t, err)
		} else if len(got) != pieceLen(int64(len(nw)), 0) {
			t.Fatalf("%d bytes", len(got))
		}
	}
	s := p.segments[0]
	for i := range s {
		if i%7 != 0 {
			continue
		}
		if _, err := must(NewApplier(bytes.NewReader(old), int64(len(old)), int64(len(nw)), p.head, GoodMemory)).Apply(nil, 0, s[:i]); err == nil {
			t.Fatalf("segment cut after %d of %d bytes is accepted", i, len(s))
		}
		b := bytes.Clone(s)
		b[i] ^= 0x81
		try(p.head, b)
	}
	for i := range p.head {
		if _, err := NewApplier(bytes.NewReader(old), int64(len(old)), int64(len(nw)), p.head[:i], GoodMemory); i > 0 && err == nil {
			t.Fatalf("head cut after %d of %d bytes is accepted", i, len(p.head))
		}
		for _, x := range []byte{1, 0x80, 0xFF} {
			b := bytes.Clone(p.head)
			b[i] ^= x
			try(b, s)
		}
	}
}

func must(a *Applier, err error) *Applier {
	if err != nil {
		panic(err)
	}
	return a
}

// A failing disk is no invalid patch, and not the end of the Applier.
func TestReadErrors(t *testing.T) {
	nw := noise(1, 100_000)
	p := roundTrip(t, nw, nw[10:], Options{})
	broken := true
	r := readerAtFunc(func(b []byte, off int64) (int, error) {
		if broken {
			return 0, iotest.ErrTimeout
		}
		return bytes.NewReader(nw).ReadAt(b, off)
	})
	a := must(NewApplier(r, int64(len(nw)), int64(len(nw)-10), p.head, GoodMemory))
	for range 2 {
		if _, err := a.Apply(nil, 0, p.segments[0]); !errors.Is(err, iotest.ErrTimeout) || errors.Is(err, ErrInvalid) {
			t.Fatalf("error %v", err)
		}
	}
	broken = false
	if got, err := a.Apply(nil, 0, p.segments[0]); err != nil || !bytes.Equal(got, nw[10:]) {
		t.Fatalf("after the error: %v", err)
	}
	broken = true
	err := Encode(t.Context(), r, bytes.NewReader(nw), int64(len(nw)), int64(len(nw)), Options{}, nil)
	if !errors.Is(err, iotest.ErrTimeout) {
		t.Fatalf("Encode: %v", err)
	}
	if err := Encode(t.Context(), bytes.NewReader(nw), bytes.NewReader(nw), int64(len(nw))+1, 1, Options{}, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("an object that is shorter than it says: %v", err)
	}
}

type readerAtFunc func(b []byte, off int64) (int, error)

func (f readerAtFunc) ReadAt(b []byte, off int64) (int, error) { return f(b, off) }

func TestEncodeStops(t *testing.T) {
	nw := noise(1, 2*PieceSize)
	ctx, cancel := context.WithCancel(t.Context())
	err := Encode(ctx, bytes.NewReader(nw), bytes.NewReader(nw), int64(len(nw)), int64(len(nw)), Options{},
		func(int, []byte) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	stop := errors.New("stop")
	err = Encode(t.Context(), bytes.NewReader(nw), bytes.NewReader(nw), int64(len(nw)), int64(len(nw)), Options{},
		func(int, []byte) error { return stop })
	if !errors.Is(err, stop) {
		t.Fatalf("error %v", err)
	}
}

// hugeFile is a file of any size whose bytes depend on their place.
type hugeFile struct{ shift int64 }

func (h hugeFile) ReadAt(b []byte, off int64) (int, error) {
	for i := range b {
		at := off + int64(i) + h.shift
		x := uint64(at>>3) * 0x9E3779B97F4A7C15
		b[i] = byte(x >> (32 + 4*(at&7)))
	}
	return len(b), nil
}

// TestMemory: what both sides hold does not grow with the files.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("patches 256 MiB")
	}
	const size = 256 << 20
	old, nw := hugeFile{0}, hugeFile{1000}
	a := must(NewApplier(old, size, size, nil, GoodMemory))
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var buf []byte
	sent, most := 0, uint64(0)
	err := Encode(t.Context(), old, nw, size, size, Options{Memory: 32 << 20}, func(piece int, s []byte) error {
		sent += len(s)
		var err error
		if buf, err = a.Apply(buf[:0], piece, s); err != nil {
			return err
		}
		want := make([]byte, len(buf))
		if _, err := nw.ReadAt(want, int64(piece)*PieceSize); err != nil {
			return err
		}
		if sha256.Sum256(buf) != sha256.Sum256(want) {
			return fmt.Errorf("piece %d differs", piece)
		}
		if piece%32 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&during)
			most = max(most, during.HeapAlloc-min(before.HeapAlloc, during.HeapAlloc))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if most > 48<<20 {
		t.Errorf("%d MiB held", most>>20)
	}
	if sent > size/1000 {
		t.Errorf("%d bytes sent", sent)
	}
}
