package server

import (
	"context"
	"fmt"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// tocFrame is the payload of a toc frame, ready to be sent.
type tocFrame struct {
	payload    []byte // compressed by wire.Compress if that paid
	compressed bool
}

// tocPair names a patch of a TOC by the digests of the encoded TOCs.
type tocPair struct{ base, toc toc.Digest }

func newTOCFrame(payload []byte) tocFrame {
	z, ok := wire.Compress(nil, payload)
	// Compress may leave much room behind what it returns.
	return tocFrame{append(make([]byte, 0, len(z)), z...), ok}
}

func (f *tocFrame) write(w *wire.Writer) error {
	if f.compressed {
		return w.CompressedTOC(f.payload)
	}
	return w.TOC(f.payload)
}

// tocFrame returns the frame that brings the TOC of m to a worker that has that of
// base, if that is not nil.
func (l *library) tocFrame(ctx context.Context, m *meta.Layer, base *layer) (*tocFrame, error) {
	if base == nil {
		ly, err := l.layer(ctx, m)
		if err != nil {
			return nil, err
		}
		return &ly.tocFrame, nil
	}
	return l.tocs.get(ctx, tocPair{base.rec.TOC, m.TOC}, l.cfg.Limits.Plan, func(ctx context.Context) (*tocFrame, int64, error) {
		var encoded [2][]byte
		for i, m := range []*meta.Layer{base.rec, m} {
			var err error
			if encoded[i], err = l.cfg.Ingester.TOC(ctx, m); err != nil {
				return nil, 0, fmt.Errorf("table of contents of layer %s: %w", m.DiffID, err)
			}
		}
		payload, err := wire.PatchTOC(ctx, encoded[0], encoded[1])
		if err != nil {
			return nil, 0, err
		}
		f := newTOCFrame(payload)
		return &f, int64(len(f.payload)) + 256, nil
	})
}
