package ingest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/pack"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// TOC returns the encoded table of contents of a layer. If it is lost or damaged,
// the layer is forgotten, so that the next request ingests it again.
func (g *Ingester) TOC(ctx context.Context, l *meta.Layer) ([]byte, error) {
	enc, err := blob.Get(ctx, g.cfg.Blobs, l.TOCKey, wire.MaxTOCFrame)
	if err == nil {
		enc, err = tocDecoder().DecodeAll(enc, nil)
		if err == nil && sha256.Sum256(enc) != l.TOC {
			err = errors.New("it has another digest")
		}
		if err != nil {
			err = damagedError{err}
		}
	}
	if err != nil {
		return nil, g.forget(ctx, l, fmt.Errorf("table of contents of %s: %w", l.DiffID, err))
	}
	return enc, nil
}

// Pack opens the pack of a layer. If it is lost or damaged, the layer is
// forgotten, so that the next request ingests it again.
func (g *Ingester) Pack(ctx context.Context, l *meta.Layer) (*pack.Reader, error) {
	r, err := pack.Open(ctx, g.cfg.Blobs, l.PackKey)
	if err == nil && r.Objects() != l.Objects {
		err = errors.Join(damagedError{fmt.Errorf("%d objects, not %d", r.Objects(), l.Objects)}, r.Close())
	}
	if err != nil {
		return nil, g.forget(ctx, l, fmt.Errorf("pack of %s: %w", l.DiffID, err))
	}
	return r, nil
}

// damagedError marks errors of blobs that are there and not what they should be.
type damagedError struct{ error }

func (e damagedError) Unwrap() error { return e.error }

// forget deletes the record of a layer if err says that its files are lost.
func (g *Ingester) forget(ctx context.Context, l *meta.Layer, err error) error {
	var damaged damagedError
	if !errors.Is(err, blob.ErrNotExist) && !errors.Is(err, pack.ErrInvalid) && !errors.As(err, &damaged) {
		return err
	}
	if derr := g.cfg.Meta.DeleteLayer(ctx, l.DiffID); derr != nil {
		return errors.Join(err, derr)
	}
	return err
}

var tocEncoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err) // constant options
	}
	return e
})

var tocDecoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(wire.MaxTOCFrame))
	if err != nil {
		panic(err) // constant options
	}
	return d
})
