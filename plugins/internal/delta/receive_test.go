package delta

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/patch"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// memory is a Sink.
type memory struct {
	list  []toc.Object
	bases [][][]byte
	full  error // of Pieces

	local []wire.Range
	mu    sync.Mutex
	got   map[uint32][]byte
	n     map[uint32]int // pieces
}

type memBase struct{ *bytes.Reader }

func (s *memory) Object(i uint32) (toc.Object, bool) {
	if int(i) >= len(s.list) {
		return toc.Object{}, false
	}
	return s.list[i], true
}

func (s *memory) Base(layer, object uint32) (Base, error) {
	if int(layer) >= len(s.bases) || int(object) >= len(s.bases[layer]) {
		return nil, invalid("no such base")
	}
	return memBase{bytes.NewReader(s.bases[layer][object])}, nil
}

func (s *memory) Local(ranges []wire.Range) { s.local = ranges }

func (s *memory) Pieces(ps []Piece) error {
	if s.full != nil {
		return s.full
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range ps {
		o := s.list[p.Object]
		if len(p.Bytes) != o.PieceLen(p.Piece) || sha256.Sum256(p.Bytes) != o.PieceDigest(p.Piece) {
			return fmt.Errorf("piece %d of object %d is wrong: %w", p.Piece, p.Object, toc.ErrInvalid)
		}
		if s.got[p.Object] == nil {
			s.got[p.Object] = make([]byte, o.Size)
		}
		copy(s.got[p.Object][p.Piece*toc.PieceSize:], p.Bytes)
		s.n[p.Object]++
	}
	return nil
}

// content describes the object that has the bytes.
func content(b []byte) toc.Object {
	o := toc.Object{Digest: sha256.Sum256(b), Size: int64(len(b))}
	for rest := b; len(b) > toc.PieceSize && len(rest) > 0; {
		p := rest[:min(len(rest), toc.PieceSize)]
		o.Pieces = append(o.Pieces, sha256.Sum256(p))
		rest = rest[len(p):]
	}
	return o
}

// bundleOf is a bundle with a header of two bases and what write writes.
func bundleOf(t testing.TB, write func(w *wire.Writer) error) *Bundle {
	t.Helper()
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	if err := errors.Join(w.Header(&wire.Header{Bases: []toc.Digest{{1}, {2}}}), write(w), w.End()); err != nil {
		t.Fatal(err)
	}
	bundle := &Bundle{r: wire.NewReader(&b), g: &guard{}}
	if f, err := bundle.Next(); err != nil || f.Header == nil {
		t.Fatal(f, err)
	}
	return bundle
}

// testContents are versions of objects: old and new, of one and of many pieces.
func testContents() (olds, news [][]byte) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{3000, 100_000, toc.PieceSize, 5*toc.PieceSize + 17} {
		old := make([]byte, size)
		for i := range old {
			old[i] = byte(r.Uint32() & r.Uint32())
		}
		nw := bytes.Clone(old)
		for range size / 1000 {
			nw[r.IntN(size)]++
		}
		olds, news = append(olds, old), append(news, append(nw, "and more"...))
	}
	return olds, news
}

// data writes a frame.
func data(w *wire.Writer, compress bool, parts ...part) error {
	var index []wire.Piece
	var contents []byte
	for _, p := range parts {
		p.Length = len(p.bytes)
		index = append(index, p.Piece)
		contents = append(contents, p.bytes...)
	}
	if compress {
		z, ok := wire.Compress(nil, contents)
		return w.Data(index, z, ok)
	}
	return w.Data(index, contents, false)
}

type part struct {
	wire.Piece
	bytes []byte
}

// TestReceive sends objects as patches, plain and filtered, with the pieces of the
// large ones in any order, some twice.
func TestReceive(t *testing.T) {
	olds, news := testContents()
	r := rand.New(rand.NewPCG(2, 2))
	for range 10 {
		sink := &memory{bases: [][][]byte{nil, olds}, got: map[uint32][]byte{}, n: map[uint32]int{}}
		b := bundleOf(t, func(w *wire.Writer) error {
			for i, nw := range news {
				sink.list = append(sink.list, content(nw))
				o := &sink.list[i]
				object := uint32(i)
				var segments [][]byte
				var head []byte
				err := patch.Encode(t.Context(), bytes.NewReader(olds[i]), bytes.NewReader(nw), int64(len(olds[i])), o.Size, patch.Options{},
					func(piece int, s []byte) error {
						if piece == patch.Head {
							head = bytes.Clone(s)
						} else {
							segments = append(segments, bytes.Clone(s))
						}
						return nil
					})
				if err != nil {
					return err
				}
				if err := data(w, false, part{wire.Piece{Kind: wire.KindBase, Object: object, Layer: 1, Base: object}, head}); err != nil {
					return err
				}
				order := append(r.Perm(o.NumPieces()), r.IntN(o.NumPieces()))
				for n, p := range order {
					e := part{wire.Piece{Object: object, Piece: uint32(p)}, bytes.Clone(nw[p*toc.PieceSize:][:o.PieceLen(p)])}
					switch way := r.IntN(3); {
					case way == 0 && n < o.NumPieces(): // the patch ends when the object is whole
						e.Kind, e.bytes = wire.KindSegment, segments[p]
					case way == 1:
						e.Kind = []wire.Kind{wire.KindX86, wire.KindARM64}[r.IntN(2)]
						wire.Filter(e.Kind, e.bytes, e.Piece.Piece, o.Size)
					}
					if err := data(w, r.IntN(2) == 0, e); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err := Receive(t.Context(), b, sink, nil); err != nil {
			t.Fatal(err)
		}
		for i, nw := range news {
			if !bytes.Equal(sink.got[uint32(i)], nw) {
				t.Errorf("object %d is wrong", i)
			}
		}
	}
}

func TestReceiveLocal(t *testing.T) {
	_, news := testContents()
	large := content(news[3])
	for _, tt := range []struct {
		ranges []wire.Range
		want   error
	}{
		{[]wire.Range{{First: 5}, {}, {First: 1, Pieces: 9}}, nil},
		{[]wire.Range{{}, {Object: 1}}, toc.ErrInvalid},
		{[]wire.Range{{First: 6, Pieces: 1}}, toc.ErrInvalid},
	} {
		sink := &memory{list: []toc.Object{large}}
		b := bundleOf(t, func(w *wire.Writer) error { return w.Local(tt.ranges) })
		if err := Receive(t.Context(), b, sink, nil); !errors.Is(err, tt.want) {
			t.Errorf("%v: got %v, want %v", tt.ranges, err, tt.want)
		}
		if ok := slices.Equal(sink.local, tt.ranges); ok != (tt.want == nil) {
			t.Errorf("%v: got %v", tt.ranges, sink.local)
		}
	}
}

func TestReceiveRefuses(t *testing.T) {
	olds, news := testContents()
	large := content(news[3])
	base := part{wire.Piece{Kind: wire.KindBase, Layer: 1, Base: 3}, nil}
	segment := func(piece uint32, b string) part {
		return part{wire.Piece{Kind: wire.KindSegment, Piece: piece}, []byte(b)}
	}
	full := errors.New("disk full")
	tests := map[string]struct {
		parts []part
		full  error
		want  error
	}{
		"object out of range":    {[]part{{wire.Piece{Object: 1}, []byte("x")}}, nil, toc.ErrInvalid},
		"piece out of range":     {[]part{{wire.Piece{Piece: 6}, []byte("x")}}, nil, toc.ErrInvalid},
		"length of a piece":      {[]part{{wire.Piece{Piece: 5}, []byte("x")}}, nil, toc.ErrInvalid},
		"segment without base":   {[]part{segment(0, "\x01")}, nil, toc.ErrInvalid},
		"segment before base":    {[]part{segment(0, "\x01"), base}, nil, toc.ErrInvalid},
		"segment out of range":   {[]part{base, segment(6, "\x01")}, nil, toc.ErrInvalid},
		"base that is not there": {[]part{{wire.Piece{Kind: wire.KindBase, Layer: 1, Base: 4}, nil}}, nil, toc.ErrInvalid},
		"layer without objects":  {[]part{{wire.Piece{Kind: wire.KindBase}, nil}}, nil, toc.ErrInvalid},
		"malformed head":         {[]part{{wire.Piece{Kind: wire.KindBase, Layer: 1, Base: 3}, []byte("\x09")}}, nil, toc.ErrInvalid},
		"malformed segment":      {[]part{base, segment(0, "\x07")}, nil, toc.ErrInvalid},
		"endless segment":        {[]part{base, segment(5, "\x01\x03\x00\x00\x00\xff\xff\x3f")}, nil, toc.ErrInvalid},
		"sink":                   {[]part{{wire.Piece{Piece: 5}, news[3][5*toc.PieceSize:]}}, full, full},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sink := &memory{list: []toc.Object{large}, bases: [][][]byte{nil, olds}, full: tt.full, got: map[uint32][]byte{}, n: map[uint32]int{}}
			b := bundleOf(t, func(w *wire.Writer) error {
				for _, p := range tt.parts {
					if err := data(w, false, p); err != nil {
						return err
					}
				}
				return nil
			})
			if err := Receive(t.Context(), b, sink, nil); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// Heads of patches that never end must not fill the memory.
func TestReceiveBoundsHeads(t *testing.T) {
	const n = maxHeads/patch.MaxHead + 1
	sink := &memory{bases: [][][]byte{{make([]byte, 10)}}, got: map[uint32][]byte{}, n: map[uint32]int{}}
	b := bundleOf(t, func(w *wire.Writer) error {
		head := make([]byte, patch.MaxHead)
		for i := range n {
			sink.list = append(sink.list, content(make([]byte, 100+i)))
			if err := data(w, true, part{wire.Piece{Kind: wire.KindBase, Object: uint32(i)}, head}); err != nil {
				return err
			}
		}
		return nil
	})
	if err := Receive(t.Context(), b, sink, nil); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

func FuzzReceive(f *testing.F) {
	olds, news := testContents()
	f.Add([]byte("SLDB\x02\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, frames []byte) {
		sink := &memory{bases: [][][]byte{nil, olds}, got: map[uint32][]byte{}, n: map[uint32]int{}}
		for _, nw := range news {
			sink.list = append(sink.list, content(nw))
		}
		head := bundleBytes(t)
		b := &Bundle{r: wire.NewReader(io.MultiReader(bytes.NewReader(head), bytes.NewReader(frames))), g: &guard{}}
		if _, err := b.Next(); err != nil {
			t.Fatal(err)
		}
		if err := Receive(t.Context(), b, sink, nil); err != nil && !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, wire.ErrTruncated) {
			if _, refused := errors.AsType[*refusedError](err); !refused {
				t.Errorf("unexpected class of error: %v", err)
			}
		}
	})
}

// bundleBytes is the beginning of a bundle: a header with bases.
func bundleBytes(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := wire.NewWriter(&b).Header(&wire.Header{Bases: []toc.Digest{{1}, {2}}}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// discard is a sink that only checks digests.
type discard struct{ *memory }

func (s discard) Pieces(ps []Piece) error {
	for _, p := range ps {
		if o := &s.list[p.Object]; sha256.Sum256(p.Bytes) != o.PieceDigest(p.Piece) {
			return fmt.Errorf("piece %d: %w", p.Piece, toc.ErrInvalid)
		}
	}
	return nil
}

func BenchmarkReceive(b *testing.B) {
	olds, news := testContents()
	old, nw := olds[3], news[3]
	o := content(nw)
	var plain, patched bytes.Buffer
	for _, out := range []struct {
		b       *bytes.Buffer
		patched bool
	}{{&plain, false}, {&patched, true}} {
		w := wire.NewWriter(out.b)
		_ = w.Header(&wire.Header{Bases: []toc.Digest{{1}}})
		if out.patched {
			_ = data(w, false, part{wire.Piece{Kind: wire.KindBase}, nil})
			err := patch.Encode(b.Context(), bytes.NewReader(old), bytes.NewReader(nw), int64(len(old)), o.Size, patch.Options{Method: patch.HD},
				func(piece int, s []byte) error {
					return data(w, true, part{wire.Piece{Kind: wire.KindSegment, Piece: uint32(piece)}, s})
				})
			if err != nil {
				b.Fatal(err)
			}
		} else {
			for p := range o.NumPieces() {
				_ = data(w, true, part{wire.Piece{Piece: uint32(p)}, nw[p*toc.PieceSize:][:o.PieceLen(p)]})
			}
		}
		_ = w.End()
	}
	for name, bundle := range map[string][]byte{"plain": plain.Bytes(), "patched": patched.Bytes()} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(o.Size)
			b.ReportAllocs()
			sink := discard{&memory{list: []toc.Object{o}, bases: [][][]byte{{old}}}}
			for b.Loop() {
				bd := &Bundle{r: wire.NewReader(bytes.NewReader(bundle)), g: &guard{}}
				if _, err := bd.Next(); err != nil {
					b.Fatal(err)
				}
				if err := Receive(b.Context(), bd, sink, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
