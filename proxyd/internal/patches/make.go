package patches

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/pack"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/patch"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// solid is how much is compressed together. A reader waits for a whole frame.
const solid = 1 << 20

// errDear is returned for a patch that is not worth its bytes.
var errDear = errors.New("the patch saves too little")

// Object is an object in a pack.
type Object struct {
	Digest toc.Digest
	Size   int64
	Pack   string // key
	Number int    // in the pack
}

// maker makes one patch.
type maker struct {
	out   *writer
	most  int64 // bytes that the patch may have
	check *patch.Applier
	sum   interface {
		io.Writer
		Sum(b []byte) []byte
	}

	enc     *zstd.Encoder
	dec     *zstd.Decoder
	plain   []byte
	entries []Entry
	piece   int // of the first entry that is not yet checked
	z, buf  []byte
	apply   func(head []byte) (*patch.Applier, error)
}

// write makes the patch between two objects and writes it, checked, to out.
func write(ctx context.Context, out io.Writer, blobs blob.Store, from, to Object, o patch.Options) (size int64, err error) {
	var r [2]*io.SectionReader
	var stored int64
	for i, x := range []Object{from, to} {
		p, err := pack.Open(ctx, blobs, x.Pack)
		if err != nil {
			return 0, err
		}
		defer p.Close()
		if x.Number >= p.Objects() || p.Size(x.Number) != x.Size {
			return 0, fmt.Errorf("pack %q has no object %s as number %d", x.Pack, x.Digest, x.Number)
		}
		r[i] = p.Object(x.Number)
		if i == 1 {
			stored = p.Stored(x.Number)
		}
	}
	return writePatch(ctx, out, r[0], r[1], from.Size, to, stored*3/4, o)
}

// writePatch gives up when the patch gets larger than most.
func writePatch(ctx context.Context, out io.Writer, from, to io.ReaderAt, oldSize int64, want Object, most int64, o patch.Options) (int64, error) {
	w, err := newWriter(out)
	if err != nil {
		return 0, err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(4<<20), zstd.WithEncoderCRC(false))
	if err != nil {
		return 0, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(wire.MaxData))
	if err != nil {
		return 0, err
	}
	defer dec.Close()
	m := &maker{out: w, most: most, enc: enc, dec: dec, sum: sha256.New(), piece: -1, entries: []Entry{{}}}
	m.apply = func(head []byte) (*patch.Applier, error) { return patch.NewApplier(from, oldSize, want.Size, head) }
	if err := patch.Encode(ctx, from, to, oldSize, want.Size, o, m.add); err != nil {
		return 0, err
	}
	if err := m.flush(); err != nil {
		return 0, err
	}
	if toc.Digest(m.sum.Sum(nil)) != want.Digest {
		return 0, fmt.Errorf("the patch makes another object than %s", want.Digest)
	}
	if err := w.finish(); err != nil {
		return 0, err
	}
	if w.size > most {
		return 0, errDear
	}
	return w.size, nil
}

// add takes what patch.Encode emits.
func (m *maker) add(piece int, b []byte) error {
	if piece == patch.Head {
		m.plain = append(m.plain, b...)
		m.entries[0].Length = len(b)
		return nil
	}
	p, plain := patch.Plain(b)
	if plain {
		b = p
	}
	if len(m.plain)+len(b) > solid || len(m.entries) == wire.MaxCount {
		if err := m.flush(); err != nil {
			return err
		}
	}
	m.plain = append(m.plain, b...)
	m.entries = append(m.entries, Entry{Length: len(b), Plain: plain})
	return nil
}

// flush writes a frame and checks what a worker will make of it.
func (m *maker) flush() error {
	if len(m.entries) == 0 {
		return nil
	}
	contents, compressed := m.plain, false
	if z := m.enc.EncodeAll(m.plain, m.z[:0]); len(z) < len(m.plain) {
		contents, compressed, m.z = z, true, z
	}
	if err := m.out.frame(contents, compressed, m.entries); err != nil {
		return err
	}
	if m.out.size > m.most {
		return errDear
	}
	got := contents
	if compressed {
		var err error
		if got, err = m.dec.DecodeAll(contents, nil); err != nil {
			return err
		}
	}
	for _, e := range m.entries {
		if err := m.verify(got[:e.Length], e.Plain); err != nil {
			return err
		}
		got = got[e.Length:]
	}
	m.plain, m.entries = m.plain[:0], m.entries[:0]
	return nil
}

// verify makes the next piece and adds it to the digest.
func (m *maker) verify(b []byte, plain bool) (err error) {
	switch {
	case m.piece < 0:
		m.check, err = m.apply(b)
	case plain:
		_, err = m.sum.Write(b)
	default:
		if m.buf, err = m.check.Apply(m.buf[:0], m.piece, b); err == nil {
			_, err = m.sum.Write(m.buf)
		}
	}
	m.piece++
	return err
}
