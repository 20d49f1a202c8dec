package patches

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/pack"
	"github.com/starlight-delta/starlight/proxyd/wire/patch"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// errDear is returned for a patch that is not worth its bytes.
var errDear = errors.New("the patch saves too little")

// object is an object in a pack.
type object struct {
	digest toc.Digest
	size   int64
	pack   string // key
	number int    // in the pack
}

// maker makes one patch.
type maker struct {
	out    *writer
	plain  *pack.Reader // of the new object
	object object
	most   int64 // bytes that may be sent
	rest   int64 // bytes of the pieces that are not patched

	apply  func(head []byte) (*patch.Applier, error)
	check  *patch.Applier
	sum    hash.Hash // of what a worker will make
	enc    *zstd.Encoder
	dec    *zstd.Decoder
	z, buf []byte
}

// write makes the patch between two objects and writes it, checked, to out.
func write(ctx context.Context, out io.Writer, blobs blob.Store, from, to object, o patch.Options) (size int64, err error) {
	old, err := openObject(ctx, blobs, from)
	if err != nil {
		return 0, err
	}
	defer old.Close()
	nw, err := openObject(ctx, blobs, to)
	if err != nil {
		return 0, err
	}
	defer nw.Close()
	m := &maker{plain: nw, object: to, sum: sha256.New()}
	if m.out, err = newWriter(out); err != nil {
		return 0, err
	}
	m.enc, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(false))
	if err != nil {
		return 0, err
	}
	if m.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(patch.MaxSegment)); err != nil {
		return 0, err
	}
	defer m.dec.Close()
	for i := range nw.Pieces(to.number) {
		m.most += int64(nw.Stored(to.number, i)) * 3 / 4
	}
	r := old.Object(from.number)
	m.apply = func(head []byte) (*patch.Applier, error) {
		return patch.NewApplier(r, from.size, to.size, head, patch.GoodMemory)
	}
	if err := patch.Encode(ctx, r, nw.Object(to.number), from.size, to.size, o, m.add); err != nil {
		return 0, err
	}
	if toc.Digest(m.sum.Sum(nil)) != to.digest {
		return 0, fmt.Errorf("the patch makes another object than %s", to.digest)
	}
	if err := m.out.finish(); err != nil {
		return 0, err
	}
	if m.out.size+m.rest > m.most {
		return 0, errDear
	}
	return m.out.size, nil
}

func openObject(ctx context.Context, blobs blob.Store, o object) (*pack.Reader, error) {
	p, err := pack.Open(ctx, blobs, o.pack)
	if err != nil {
		return nil, err
	}
	if o.number >= p.Objects() || p.Size(o.number) != o.size {
		return nil, errors.Join(fmt.Errorf("pack %q has no object %s as number %d", o.pack, o.digest, o.number), p.Close())
	}
	return p, nil
}

// add takes what patch.Encode emits, writes it, and checks what a worker will make
// of what was written.
func (m *maker) add(piece int, b []byte) (err error) {
	if m.check == nil {
		var head []byte
		if piece == patch.Head {
			head = b
		}
		if err := m.out.addHead(head); err != nil {
			return err
		}
		if m.check, err = m.apply(head); err != nil || piece == patch.Head {
			return err
		}
	}
	enc, compressed := b, false
	if m.z = m.enc.EncodeAll(b, m.z[:0]); len(m.z) < len(b) {
		enc, compressed = m.z, true
	}
	if len(enc) >= m.plain.Stored(m.object.number, piece) {
		return m.unpatched(piece)
	}
	if err := m.out.segment(enc, compressed, len(b)); err != nil {
		return err
	}
	if m.out.size+m.rest > m.most {
		return errDear
	}
	if compressed {
		if b, err = m.dec.DecodeAll(enc, nil); err != nil {
			return err
		}
	}
	if m.buf, err = m.check.Apply(m.buf[:0], piece, b); err != nil {
		return err
	}
	_, err = m.sum.Write(m.buf)
	return err
}

// unpatched says that a piece is sent as it is stored.
func (m *maker) unpatched(piece int) (err error) {
	if m.rest += int64(m.plain.Stored(m.object.number, piece)); m.rest > m.most {
		return errDear
	}
	if m.buf, err = m.plain.AppendPiece(m.buf[:0], m.object.number, piece); err != nil {
		return err
	}
	if _, err := m.sum.Write(m.buf); err != nil {
		return err
	}
	return m.out.segment(nil, false, 0)
}
