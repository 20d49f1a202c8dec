package delta

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Pack gives the stored objects of one layer. Objects are numbered as in the
// layer's TOC.
type Pack interface {
	// Piece returns a piece as it is stored: one zstd frame if compressed, the
	// plain bytes if not.
	Piece(object, piece int) (enc []byte, compressed bool, err error)
	// AppendPiece appends the plain bytes of a piece to dst.
	AppendPiece(dst []byte, object, piece int) ([]byte, error)
	// Stored is the size of a piece as it is stored.
	Stored(object, piece int) int
}

// Packs gives the pack of a layer, numbered as given to [NewImage]. It is asked
// whenever the layer changes, concurrently; the pack stays the property of
// whoever implements it, and is used until the call that got it returns.
type Packs func(ctx context.Context, layer int) (Pack, error)

const (
	// solid is the size up to which small objects share a frame. At 1 MiB they
	// would compress better by some 4 %, but what becomes urgent waits for the
	// frames that are made already.
	solid = 256 << 10
	// firstSolid is the size of the first shared frame; each is twice as large
	// as the one before. What is most urgent shall not wait for what follows it.
	firstSolid = 64 << 10
	// smallSegment is the size below which segments of patches share frames, whatever they
	// are of. An update changes little in most pieces of a program.
	smallSegment = 32 << 10
)

// frame is a data frame ready to be written.
type frame struct {
	index      []wire.Piece
	contents   []byte
	compressed bool
	z          []byte // buffer below contents
}

// maker makes frames of objects. It is used by one goroutine.
type maker struct {
	img   *Image
	packs Packs
	emit  func(context.Context, *frame) error
	free  func(context.Context) (*frame, error)
	// urgent is Steer.Urgent, or nil. hurried is how deep urgent objects have
	// been interrupted by others.
	urgent  func(last bool) []Item
	hurried int
	patcher *Patcher     // nil: all is sent plain
	frames  *FrameSource // nil: all frames are made here
	hot     bool         // what is being added is expected to be waited for

	layer  int // of pack
	pack   Pack
	target int // size at which the shared frame under way is full
	most   int // bytes of small objects that will come, if known
	index  []wire.Piece
	plain  []byte
}

func newMaker(img *Image, packs Packs) *maker {
	return &maker{img: img, packs: packs, layer: -1, target: firstSolid}
}

// send emits items in frames of their own.
func (m *maker) send(ctx context.Context, items []Item) error {
	for _, it := range items {
		for i := range it.Pieces {
			if i > 0 {
				if err := m.hurry(ctx, false); err != nil {
					return err
				}
			}
			if err := m.add(ctx, it.Object, int(it.First+i)); err != nil {
				return err
			}
		}
	}
	return m.flush(ctx)
}

// add puts a piece of an object into the next frame, and emits what is full.
func (m *maker) add(ctx context.Context, id uint32, piece int) error {
	o := &m.img.Objects[id]
	if m.patcher != nil {
		if sent, err := m.patched(ctx, id, piece); sent || err != nil {
			return err
		}
	}
	if m.frames != nil {
		if n, ok := m.frames.frame(m.img, id, piece, m.hot || m.hurried > 0, m.patcher); ok {
			return m.stored(ctx, n)
		}
	}
	if o.Size >= SmallObject {
		// What came before is more urgent: it must not wait until the large one is out.
		if err := m.flush(ctx); err != nil {
			return err
		}
		return m.verbatim(ctx, id, piece)
	}
	if len(m.plain)+int(o.Size) > solid || len(m.index) == wire.MaxCount {
		if err := m.flush(ctx); err != nil {
			return err
		}
	}
	at, err := m.open(ctx, id)
	if err != nil {
		return err
	}
	m.reserve()
	before := len(m.plain)
	plain, err := m.pack.AppendPiece(m.plain, at.Object, 0)
	if err != nil {
		return fmt.Errorf("object %s: %w", o.Digest, err)
	}
	if int64(len(plain)-before) != o.Size {
		return fmt.Errorf("object %s has %d bytes in its pack, want %d: %w", o.Digest, len(plain)-before, o.Size, toc.ErrInvalid)
	}
	m.plain = plain
	m.index = append(m.index, wire.Piece{Kind: wire.KindPlain, Object: id, Length: int(o.Size)})
	if len(m.plain) >= m.target {
		return m.flush(ctx)
	}
	return nil
}

// patched emits a piece as a segment of a patch, if there is one.
func (m *maker) patched(ctx context.Context, id uint32, piece int) (bool, error) {
	if _, ok := m.patcher.Bases.Of(id); !ok {
		return false, nil
	}
	o := &m.img.Objects[id]
	at, err := m.open(ctx, id)
	if err != nil {
		return false, err
	}
	var stored int64
	for i := piece; i < o.NumPieces(); i++ {
		stored += int64(m.pack.Stored(at.Object, i))
	}
	hot := m.hot || m.hurried > 0
	began := time.Now()
	j, s, change, wait := m.patcher.take(id, piece, stored, 0, hot, m.hurried > 0)
	for change != nil {
		if time.Since(began) > glance { // what is ready shall not wait for it
			if err := m.flush(ctx); err != nil {
				return false, err
			}
		}
		if err := m.idle(ctx, change, wait); err != nil {
			return false, err
		}
		j, s, change, wait = m.patcher.take(id, piece, stored, time.Since(began), hot, m.hurried > 0)
	}
	if s.length == 0 {
		return false, nil
	}
	// Others may have been sent meanwhile.
	if at, err = m.open(ctx, id); err != nil {
		return false, err
	}
	m.patcher.saved.Add(int64(m.pack.Stored(at.Object, piece) - len(s.enc)))
	alone := o.Size >= SmallObject && s.length >= smallSegment
	if alone || len(j.head)+s.length > solid/2 || len(m.plain)+len(j.head)+s.length > solid || len(m.index)+2 > wire.MaxCount {
		if err := m.flush(ctx); err != nil {
			return false, err
		}
	}
	if !j.based {
		j.based = true
		m.reserve()
		m.plain = append(m.plain, j.head...)
		m.index = append(m.index, wire.Piece{Kind: wire.KindBase, Object: id, Layer: uint32(j.of.Layer), Base: j.of.Object, Length: len(j.head)})
	}
	e := wire.Piece{Kind: wire.KindSegment, Object: id, Piece: uint32(piece), Length: s.length}
	if alone {
		if err := m.flush(ctx); err != nil {
			return false, err
		}
		return true, m.asIs(ctx, e, s.enc, s.compressed)
	}
	m.reserve()
	if s.compressed {
		at := len(m.plain)
		m.plain = slices.Grow(m.plain, s.length)
		raw, err := wire.Decompress(m.plain[at:at+s.length], s.enc, s.length)
		if err != nil {
			return false, err
		}
		m.plain = append(m.plain, raw...) // onto itself
	} else {
		m.plain = append(m.plain, s.enc...)
	}
	m.index = append(m.index, e)
	if len(m.plain) >= m.target {
		return true, m.flush(ctx)
	}
	return true, nil
}

// glance is how often a stream that waits looks for what has become urgent.
const glance = 5 * time.Millisecond

// idle waits for change or the end of the time, or until something else was urgent.
func (m *maker) idle(ctx context.Context, change <-chan struct{}, wait time.Duration) error {
	t := time.NewTimer(min(wait, glance))
	defer t.Stop()
	select {
	case <-change:
		return nil
	case <-t.C:
		return m.hurry(ctx, false)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stored emits a frame that was made before.
func (m *maker) stored(ctx context.Context, n int32) error {
	if err := m.flush(ctx); err != nil {
		return err
	}
	f, err := m.free(ctx)
	if err != nil {
		return err
	}
	if err := m.frames.read(n, f); err != nil {
		return err
	}
	return m.emit(ctx, f)
}

// asIs emits a frame of one entry that is compressed already.
func (m *maker) asIs(ctx context.Context, e wire.Piece, enc []byte, compressed bool) error {
	f, err := m.free(ctx)
	if err != nil {
		return err
	}
	f.index, f.contents, f.compressed = append(f.index[:0], e), enc, compressed
	return m.emit(ctx, f)
}

// maxHurried bounds how deep urgent objects interrupt each other.
const maxHurried = 8

// hurry puts what has become urgent into frames of its own, at once. The pieces
// of a large object under way come after it.
func (m *maker) hurry(ctx context.Context, last bool) error {
	if m.urgent == nil || m.hurried == maxHurried {
		return nil
	}
	m.hurried++
	defer func() { m.hurried-- }()
	for {
		items := m.urgent(last)
		if len(items) == 0 {
			return nil
		}
		if err := m.flush(ctx); err != nil {
			return err
		}
		if err := m.send(ctx, items); err != nil {
			return err
		}
	}
}

// reserve makes room for a whole frame when one begins: a pack that decodes object
// after object to the end of a full buffer would move it each time.
func (m *maker) reserve() {
	const slack = 64 // decoders write faster if they may write past the end
	if len(m.plain) > 0 {
		return
	}
	n := min(m.target+SmallObject, solid)
	if m.most > 0 {
		n = min(n, m.most)
	}
	m.plain = slices.Grow(m.plain, n+slack)
}

// flush emits the shared frame under way.
func (m *maker) flush(ctx context.Context) error {
	if len(m.index) == 0 {
		return nil
	}
	f, err := m.free(ctx)
	if err != nil {
		return err
	}
	f.index = append(f.index[:0], m.index...)
	z, ok := wire.Compress(f.z, m.plain)
	if ok {
		f.z, f.contents = z, z
	} else {
		f.z = append(f.z[:0], m.plain...)
		f.contents = f.z
	}
	f.compressed = ok
	m.index, m.plain = m.index[:0], m.plain[:0]
	m.target = min(2*m.target, solid)
	return m.emit(ctx, f)
}

// verbatim emits a piece as it is stored.
func (m *maker) verbatim(ctx context.Context, id uint32, piece int) error {
	o := &m.img.Objects[id]
	at, err := m.open(ctx, id)
	if err != nil {
		return err
	}
	enc, compressed, err := m.pack.Piece(at.Object, piece)
	if err != nil {
		return fmt.Errorf("piece %d of object %s: %w", piece, o.Digest, err)
	}
	return m.asIs(ctx, wire.Piece{Object: id, Piece: uint32(piece), Length: o.PieceLen(piece)}, enc, compressed)
}

// open makes m.pack the pack that holds the object.
func (m *maker) open(ctx context.Context, id uint32) (Place, error) {
	if err := ctx.Err(); err != nil {
		return Place{}, context.Cause(ctx)
	}
	at := m.img.places[id]
	if at.Layer != m.layer {
		p, err := m.packs(ctx, at.Layer)
		if err != nil {
			return Place{}, fmt.Errorf("pack of layer %d: %w", at.Layer, err)
		}
		m.layer, m.pack = at.Layer, p
	}
	return at, nil
}
