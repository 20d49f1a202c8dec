package objects_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/starlight-delta/starlight/plugins/internal/objects"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// BenchmarkImage writes 25k small files, as a pull of a large image does.
func BenchmarkImage(b *testing.B) {
	const files = 25_000
	data := make([]byte, 4000)
	for b.Loop() {
		b.StopTimer()
		s := open(b, b.TempDir())
		objs := make([]toc.Object, files)
		for i := range objs {
			binary.LittleEndian.PutUint64(data, uint64(i))
			objs[i] = describe(data)
		}
		b.StartTimer()
		for i, o := range objs {
			binary.LittleEndian.PutUint64(data, uint64(i))
			if err := s.Put(o, data); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/files, "ns/file")
}

// BenchmarkOpen loads a store of 25k objects.
func BenchmarkOpen(b *testing.B) {
	root := b.TempDir()
	s := open(b, root)
	data := make([]byte, 8)
	for i := range 25_000 {
		binary.LittleEndian.PutUint64(data, uint64(i))
		if err := s.Put(describe(data), data); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		s, err := objects.Open(root)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLarge writes one object of 64 pieces in order.
func BenchmarkLarge(b *testing.B) {
	data := make([]byte, 64*toc.PieceSize)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(data)
	o := describe(data)
	b.SetBytes(int64(len(data)))
	s := open(b, b.TempDir())
	for b.Loop() {
		w, err := s.Writer(o)
		if err != nil {
			b.Fatal(err)
		}
		for i := range o.Pieces {
			if err := w.Piece(i, piece(data, i)); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Remove(o.Digest); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
