package patch

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// BenchmarkPair makes and applies patches between the files of $PATCH_PAIRS
// ("old:new old:new ..."), so that anyone can measure on what matters to them.
func BenchmarkPair(b *testing.B) {
	for pair := range strings.FieldsSeq(os.Getenv("PATCH_PAIRS")) {
		from, to, _ := strings.Cut(pair, ":")
		old, nw := open(b, from), open(b, to)
		for _, m := range []struct {
			name string
			o    Options
		}{
			{"hd", Options{Method: HD}},
			{"hd-near", Options{Method: HD, Ahead: 4 << 20}},
			{"hd-strong", Options{Method: HD, Lazy: -1, Step: 4}},
			{"rd", Options{Method: RD}},
			{"rd-strong", Options{Method: RD, Lazy: -1, Step: 4, Passes: 3}},
		} {
			b.Run(filepath.Base(to)+"/"+m.name, func(b *testing.B) { benchPair(b, old, nw, m.o) })
		}
	}
}

func benchPair(b *testing.B, old, nw *os.File, o Options) {
	oldSize, newSize := size(b, old), size(b, nw)
	b.SetBytes(newSize)
	var encode, decode time.Duration
	var sent, head int
	for b.Loop() {
		start := cpuTime(b)
		p := makePatch(b, old, nw, oldSize, newSize, o)
		encode += cpuTime(b) - start
		sent, head = compressed(b, p), len(p.head)
		start = cpuTime(b)
		a, err := NewApplier(old, oldSize, newSize, p.head, GoodMemory)
		if err != nil {
			b.Fatal(err)
		}
		var buf []byte
		var sums [][32]byte
		for i, s := range p.segments {
			if buf, err = a.Apply(buf[:0], i, s); err != nil {
				b.Fatal(err)
			}
			decode += cpuTime(b) - start
			sums = append(sums, sha256.Sum256(buf))
			start = cpuTime(b)
		}
		check := make([]byte, PieceSize)
		for i := range sums {
			n, err := nw.ReadAt(check, int64(i)*PieceSize)
			if err != nil && err != io.EOF {
				b.Fatal(err)
			}
			if sha256.Sum256(check[:n]) != sums[i] {
				b.Fatalf("piece %d differs", i)
			}
		}
	}
	mb := float64(newSize) / 1e6 * float64(b.N)
	b.ReportMetric(mb/encode.Seconds(), "enc-MB/s")
	b.ReportMetric(mb/decode.Seconds(), "dec-MB/s")
	b.ReportMetric(float64(sent), "bytes")
	b.ReportMetric(float64(head), "head")
}

// cpuTime is what the process has used: how busy the machine is does not count.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

type made struct {
	head     []byte
	segments [][]byte
}

func makePatch(t testing.TB, old, nw io.ReaderAt, oldSize, newSize int64, o Options) (p made) {
	t.Helper()
	err := Encode(t.Context(), old, nw, oldSize, newSize, o, func(piece int, s []byte) error {
		if piece == Head {
			p.head = bytes.Clone(s)
			return nil
		}
		if piece != len(p.segments) {
			t.Fatalf("piece %d comes after %d", piece, len(p.segments)-1)
		}
		p.segments = append(p.segments, bytes.Clone(s))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// compressed returns what a patch takes on the wire: segments in frames of about a piece.
func compressed(t testing.TB, p made) int {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	n := len(w.EncodeAll(p.head, nil))
	var frame []byte
	for i, s := range p.segments {
		frame = append(frame, s...)
		if len(frame) >= PieceSize || i == len(p.segments)-1 {
			n += len(w.EncodeAll(frame, nil))
			frame = frame[:0]
		}
	}
	return n
}

func open(t testing.TB, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func size(t testing.TB, f *os.File) int64 {
	t.Helper()
	i, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return i.Size()
}
