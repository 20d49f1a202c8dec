package server

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/predict"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// orderStatic is the kind of order that package predict computes.
const orderStatic = "static"

// orderVersion is the first byte of a stored order. It changes with the
// predictor, so that orders of an older one are computed again.
const orderVersion = 6

// order returns the order of sending: the stored one, or the predicted one,
// which is stored.
func (l *library) order(ctx context.Context, im *image, img *registry.Image, tree *toc.Tree) ([]uint32, error) {
	stored, err := l.cfg.Meta.Order(ctx, im.manifest, orderStatic)
	if err == nil {
		if order, ok := decodeOrder(stored, len(im.delta.Objects)); ok {
			return order, nil
		}
	} else if !errors.Is(err, meta.ErrNotFound) {
		return nil, fmt.Errorf("order of sending: %w", err)
	}
	order, err := l.predict(ctx, im, img, tree)
	if err != nil {
		return nil, fmt.Errorf("predict the order of sending: %w", err)
	}
	if err := l.cfg.Meta.PutOrder(ctx, im.manifest, orderStatic, encodeOrder(order)); err != nil {
		return nil, fmt.Errorf("store the order of sending: %w", err)
	}
	return order, nil
}

func encodeOrder(order []uint32) []byte {
	b := append(make([]byte, 0, 1+3*len(order)), orderVersion)
	prev := int64(-1)
	for _, id := range order {
		b = binary.AppendVarint(b, int64(id)-prev-1) // neighbours take one byte
		prev = int64(id)
	}
	return b
}

func decodeOrder(b []byte, objects int) ([]uint32, bool) {
	if len(b) == 0 || b[0] != orderVersion {
		return nil, false
	}
	order := make([]uint32, 0, min(objects, len(b)))
	prev := int64(-1)
	for b = b[1:]; len(b) > 0; {
		d, n := binary.Varint(b)
		if n <= 0 || len(order) == objects {
			return nil, false
		}
		b = b[n:]
		if prev += d + 1; prev < 0 || prev >= int64(objects) {
			return nil, false
		}
		order = append(order, uint32(prev))
	}
	return order, true
}

func (l *library) predict(ctx context.Context, im *image, img *registry.Image, tree *toc.Tree) ([]uint32, error) {
	var cfg ocispec.Image
	if err := json.Unmarshal(img.Config.Bytes, &cfg); err != nil {
		cfg = ocispec.Image{} // of a shape that OCI does not know: no start to predict
	}
	var entries []predict.Entry
	if err := tree.Walk(func(path string, n *toc.Node) error {
		e := predict.Entry{Path: path, Type: n.Type, Mode: n.Mode, Link: n.Link, Object: predict.NoObject, Size: n.Size, Mtime: n.MtimeSec}
		if n.Type == toc.TypeReg && n.Size > 0 {
			if id, ok := im.delta.Index(n.Object); ok {
				e.Object = int(id)
			}
		}
		entries = append(entries, e)
		return ctx.Err()
	}); err != nil {
		return nil, err
	}
	r := &objectReader{packs: l.packSet(im.layers), img: im.delta}
	defer r.packs.close()
	return predict.Order(ctx, entries, predict.Config{
		Entrypoint: cfg.Config.Entrypoint, Cmd: cfg.Config.Cmd, Env: cfg.Config.Env, WorkingDir: cfg.Config.WorkingDir,
	}, r, predict.DefaultLimits())
}

// objectReader reads objects at random from packs. It keeps the last pieces:
// whoever parses a file reads a few bytes here and there.
type objectReader struct {
	packs  *packSet
	img    *delta.Image
	recent []recentPiece // the last used at the end
}

type recentPiece struct {
	object uint32
	piece  int
	plain  []byte
}

// recentPieces of at most 1 MiB each are kept.
const recentPieces = 4

// ReadObjectAt implements predict.Objects.
func (r *objectReader) ReadObjectAt(ctx context.Context, object uint32, p []byte, off int64) (n int, err error) {
	size := r.img.Objects[object].Size
	for n < len(p) {
		if off >= size {
			return n, io.EOF
		}
		plain, err := r.piece(ctx, object, int(off/toc.PieceSize))
		if err != nil {
			return n, err
		}
		at := off % toc.PieceSize
		if at >= int64(len(plain)) {
			return n, io.ErrUnexpectedEOF
		}
		m := copy(p[n:], plain[at:])
		n += m
		off += int64(m)
	}
	return n, nil
}

func (r *objectReader) piece(ctx context.Context, object uint32, piece int) ([]byte, error) {
	var buf []byte
	for i, e := range r.recent {
		if e.object == object && e.piece == piece {
			r.recent = append(slices.Delete(r.recent, i, i+1), e)
			return e.plain, nil
		}
	}
	if len(r.recent) == recentPieces {
		buf = r.recent[0].plain[:0]
		r.recent = slices.Delete(r.recent, 0, 1)
	}
	at := r.img.Place(object)
	p, err := r.packs.get(ctx, at.Layer)
	if err != nil {
		return nil, err
	}
	plain, err := p.AppendPiece(buf, at.Object, piece)
	if err != nil {
		return nil, err
	}
	r.recent = append(r.recent, recentPiece{object, piece, plain})
	return plain, nil
}
