package delta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// memPack is a Pack in memory.
type memPack []memObject

type memObject struct{ pieces []memPiece }

type memPiece struct {
	enc        []byte
	compressed bool
}

var unzstd, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))

func (p memPack) Piece(object, piece int) ([]byte, bool, error) {
	m := p[object].pieces[piece]
	return m.enc, m.compressed, nil
}

func (p memPack) Stored(object, piece int) int { return len(p[object].pieces[piece].enc) }

func (p memPack) AppendPiece(dst []byte, object, piece int) ([]byte, error) {
	m := p[object].pieces[piece]
	if !m.compressed {
		return append(dst, m.enc...), nil
	}
	return unzstd.DecodeAll(m.enc, dst)
}

// pieceCache holds compressed pieces: tests use the same ones again and again, and
// compressing takes long under the race detector.
var pieceCache sync.Map // toc.Digest → memPiece

func compressed(d toc.Digest, p []byte) memPiece {
	if m, ok := pieceCache.Load(d); ok {
		return m.(memPiece)
	}
	enc, ok := wire.Compress(nil, p)
	m := memPiece{bytes.Clone(enc), ok}
	pieceCache.Store(d, m)
	return m
}

// contentCache holds what randomContents made.
var contentCache sync.Map // seed → []byte

// randomContents returns one of a hundred contents.
func randomContents(seed uint64) []byte {
	if b, ok := contentCache.Load(seed); ok {
		return b.([]byte)
	}
	size := 1 + rand.New(rand.NewPCG(seed, 0)).IntN(3000)
	switch {
	case seed == 0:
		size = 0
	case seed == 1:
		size = 2*toc.PieceSize + 77
	case seed < 6:
		size = SmallObject - 2 + int(seed)
	case seed == 6:
		size = toc.PieceSize
	}
	b := randomBytes(rand.New(rand.NewPCG(seed, 1)), size)
	contentCache.Store(seed, b)
	return b
}

// layer is a TOC under construction, with its pack.
type layer struct {
	b    *toc.Builder
	pack memPack
}

func newLayer() *layer { return &layer{b: toc.NewBuilder()} }

func (l *layer) file(t testing.TB, name string, contents []byte) {
	t.Helper()
	e := toc.Entry{Name: name, Mode: 0o644, Size: int64(len(contents))}
	var pieces []toc.Digest
	var obj memObject
	if len(contents) > 0 {
		e.Object = sha256.Sum256(contents)
	}
	for rest := contents; len(rest) > 0; {
		p := rest[:min(len(rest), toc.PieceSize)]
		rest = rest[len(p):]
		d := toc.Digest(sha256.Sum256(p))
		obj.pieces = append(obj.pieces, compressed(d, p))
		pieces = append(pieces, d)
	}
	if len(pieces) == 1 {
		pieces = nil
	}
	_, fresh, err := l.b.Add(e, pieces)
	if err != nil {
		t.Fatal(err)
	}
	if fresh {
		l.pack = append(l.pack, obj)
	}
}

// fixture is an image with the contents of its objects.
type fixture struct {
	img  *Image
	tocs []*toc.TOC
	tree *toc.Tree
	all  []memPack
}

func newFixture(t testing.TB, layers ...*layer) *fixture {
	t.Helper()
	f := &fixture{}
	for i, l := range layers {
		f.tocs = append(f.tocs, l.b.TOC(sha256.Sum256(fmt.Append(nil, "layer", i, len(l.pack)))))
		f.all = append(f.all, l.pack)
	}
	var err error
	if f.tree, err = toc.Merge(f.tocs...); err != nil {
		t.Fatal(err)
	}
	if f.img, err = NewImage(f.tocs, f.tree); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) packs(_ context.Context, layer int) (Pack, error) { return f.all[layer], nil }

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = "aaaaaabcdefgh \n\x00"[r.IntN(16)]
	}
	return b
}

// randomFixture is an image of some layers that hide, replace and repeat files
// of one another. Names and contents are few, so that images of different seeds
// share objects.
func randomFixture(t testing.TB, r *rand.Rand) *fixture {
	var layers []*layer
	for range 1 + r.IntN(4) {
		l := newLayer()
		gone := r.IntN(6) // the number of a directory that the layer removes
		if gone < 3 {
			l.file(t, fmt.Sprintf("d%d/.wh.e%d", gone, gone), nil)
		}
		for range r.IntN(60) {
			d, e := r.IntN(3), r.IntN(3)
			if d == gone && e == gone {
				continue
			}
			name := fmt.Sprintf("d%d/e%d/f%d", d, e, r.IntN(10))
			if r.IntN(5) == 0 {
				name = "usr/share/doc/" + name
			}
			l.file(t, name, randomContents(r.Uint64N(100)))
		}
		layers = append(layers, l)
	}
	return newFixture(t, layers...)
}

// worker is the receiving side: contents by digest, after the rules of package wire.
type worker struct {
	have    map[toc.Digest][]byte
	partial map[uint32]*partial
	got     []uint32 // objects completed, in order
	pieces  []Item   // in order
	frames  []int    // contents of each frame
	kinds   map[wire.Kind]int
	bases   *fixture // what patches are made against
	base    map[uint32]sentBase
	// tolerant workers take what they have.
	tolerant bool
}

type partial struct {
	b    []byte
	seen map[uint32]bool
}

func newWorker() *worker {
	return &worker{have: map[toc.Digest][]byte{}, partial: map[uint32]*partial{}, kinds: map[wire.Kind]int{}, base: map[uint32]sentBase{}}
}

// receive reads a bundle, after which no object is there in part only.
func (w *worker) receive(objects []toc.Object, bundle []byte) error {
	if err := w.read(objects, bundle); err != nil {
		return err
	}
	if len(w.partial) > 0 {
		return fmt.Errorf("%d objects are incomplete", len(w.partial))
	}
	return nil
}

func (w *worker) read(objects []toc.Object, bundle []byte) error {
	rd := wire.NewObjectsReader(bytes.NewReader(bundle))
	if len(bundle) > 8 && bundle[8] == byte(wire.FrameHeader) {
		rd = wire.NewReader(bytes.NewReader(bundle))
	}
	for {
		f, err := rd.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case f.Type != wire.FrameData:
			continue
		}
		contents := f.Data.Contents
		w.frames = append(w.frames, len(contents))
		for _, p := range f.Data.Index {
			b := contents[:p.Length]
			contents = contents[p.Length:]
			w.kinds[p.Kind]++
			switch p.Kind {
			case wire.KindBase:
				w.base[p.Object] = sentBase{p, bytes.Clone(b)}
				continue
			case wire.KindX86, wire.KindARM64:
				wire.Unfilter(p.Kind, b, p.Piece, objects[p.Object].Size)
			case wire.KindSegment:
				var err error
				if b, err = w.segment(objects, p, b); err != nil {
					return err
				}
			}
			if err := w.piece(objects, p, b); err != nil {
				return err
			}
		}
	}
}

func (w *worker) piece(objects []toc.Object, p wire.Piece, b []byte) error {
	o := &objects[p.Object]
	if _, dup := w.have[o.Digest]; dup && w.tolerant {
		return nil
	} else if dup {
		return fmt.Errorf("object %d was had already", p.Object)
	}
	part := w.partial[p.Object]
	if part == nil {
		part = &partial{make([]byte, o.Size), map[uint32]bool{}}
		w.partial[p.Object] = part
	}
	if part.seen[p.Piece] && !w.tolerant || int(p.Piece) >= o.NumPieces() || len(b) != o.PieceLen(int(p.Piece)) {
		return fmt.Errorf("object %d: piece %d of %d bytes is wrong or not the first", p.Object, p.Piece, len(b))
	}
	if toc.Digest(sha256.Sum256(b)) != o.PieceDigest(int(p.Piece)) {
		return fmt.Errorf("object %d: piece %d is wrong", p.Object, p.Piece)
	}
	copy(part.b[int64(p.Piece)*toc.PieceSize:], b)
	part.seen[p.Piece] = true
	w.pieces = extend(w.pieces, p.Object, int(p.Piece))
	if len(part.seen) < o.NumPieces() {
		return nil
	}
	if toc.Digest(sha256.Sum256(part.b)) != o.Digest {
		return fmt.Errorf("object %d is wrong", p.Object)
	}
	w.have[o.Digest] = part.b
	delete(w.partial, p.Object)
	w.got = append(w.got, p.Object)
	return nil
}

// whole makes items of objects.
func whole(ids ...uint32) []Item {
	items := make([]Item, len(ids))
	for i, id := range ids {
		items[i] = Item{Object: id, Pieces: 1}
	}
	return items
}

// bundle returns what write writes, with an end frame.
func bundle(t testing.TB, write func(*wire.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	if err := write(w); err != nil {
		t.Fatal(err)
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func stream(t testing.TB, f *fixture, p *Plan, skip func(uint32, int) bool) []byte {
	t.Helper()
	return bundle(t, func(w *wire.Writer) error {
		return Stream(t.Context(), w, f.img, p, f.packs, Steer{Skip: skip})
	})
}

func TestNewImageRefuses(t *testing.T) {
	a, b := newLayer(), newLayer()
	a.file(t, "x", []byte("x"))
	b.file(t, "x", []byte("x"))
	ta, tb := a.b.TOC(toc.Digest{1}), b.b.TOC(toc.Digest{2})
	tree, err := toc.Merge(ta)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewImage(nil, tree); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("tree of other layers: got %v, want ErrInvalid", err)
	}
	tb.Objects[0].Size = 2
	if _, err := NewImage([]*toc.TOC{ta, tb}, tree); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("object of two sizes: got %v, want ErrInvalid", err)
	}
}
