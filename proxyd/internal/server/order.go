package server

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/predict"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// orderStatic is the kind of order that package predict computes.
const orderStatic = "static"

// orderVersion is the first byte of a stored order. It changes with the
// predictor, so that orders of an older one are computed again.
const orderVersion = 17

// order returns the order of sending: the stored one, or the predicted one,
// which is stored.
func (l *library) order(ctx context.Context, im *image, img *registry.Image, tree *toc.Tree) (delta.Order, error) {
	stored, err := l.cfg.Meta.Order(ctx, im.manifest, orderStatic)
	if err == nil {
		if order, ok := decodeOrder(stored, im.delta.Objects); ok {
			return order, nil
		}
	} else if !errors.Is(err, meta.ErrNotFound) {
		return delta.Order{}, fmt.Errorf("order of sending: %w", err)
	}
	order, err := l.predict(ctx, im, img, tree)
	if err != nil {
		return delta.Order{}, fmt.Errorf("predict the order of sending: %w", err)
	}
	if err := l.cfg.Meta.PutOrder(ctx, im.manifest, orderStatic, encodeOrder(order)); err != nil {
		return delta.Order{}, fmt.Errorf("store the order of sending: %w", err)
	}
	return order, nil
}

// encodeOrder stores an order as
//
//	orderVersion hot(uvarint) group(uvarint, bytes) times(uvarint) *time(uvarint) items
//
// where times are distances, and items as in [wire.AppendRanges].
func encodeOrder(order delta.Order) []byte {
	b := append(make([]byte, 0, 8+len(order.Group)+2*len(order.Times)+3*len(order.Items)), orderVersion)
	b = binary.AppendUvarint(b, uint64(order.Hot))
	b = binary.AppendUvarint(b, uint64(len(order.Group)))
	b = append(b, order.Group...)
	b = binary.AppendUvarint(b, uint64(len(order.Times)))
	at := uint32(0)
	for _, t := range order.Times {
		b = binary.AppendUvarint(b, uint64(t-at))
		at = t
	}
	return wire.AppendRanges(b, order.Items)
}

// maxItems bounds the items of a stored order for each piece of the image: more
// than one of them would name it in vain.
const maxItems = 2

func decodeOrder(b []byte, objects []toc.Object) (order delta.Order, ok bool) {
	if len(b) == 0 || b[0] != orderVersion {
		return order, false
	}
	most := 0
	for i := range objects {
		most += maxItems * objects[i].NumPieces()
	}
	b = b[1:]
	uvarint := func(limit int) uint32 {
		v, n := binary.Uvarint(b)
		if ok = ok && n > 0 && v <= uint64(limit); !ok {
			return 0
		}
		b = b[n:]
		return uint32(v)
	}
	ok = true
	order.Hot = int(uvarint(most))
	group := uvarint(len(b))
	if int64(group) > int64(len(b)) { // b has become shorter
		return order, false
	}
	order.Group, b = string(b[:group]), b[group:]
	at := uint32(0)
	for range uvarint(order.Hot) {
		at += uvarint(math.MaxUint32)
		order.Times = append(order.Times, at)
	}
	if !ok {
		return order, false
	}
	var err error
	if order.Items, err = wire.DecodeRanges(b, most); err != nil {
		return order, false
	}
	for _, it := range order.Items {
		ok = ok && int64(it.Object) < int64(len(objects))
	}
	return order, ok && order.Hot <= len(order.Items)
}

func (l *library) predict(ctx context.Context, im *image, img *registry.Image, tree *toc.Tree) (delta.Order, error) {
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
		return delta.Order{}, err
	}
	r := &objectReader{packs: l.packSet(im.packKeys()), img: im.delta}
	defer r.packs.close()
	items, hot, err := predict.Order(ctx, entries, predict.Config{
		Entrypoint: cfg.Config.Entrypoint, Cmd: cfg.Config.Cmd, Env: cfg.Config.Env, WorkingDir: cfg.Config.WorkingDir,
	}, r, predict.DefaultLimits())
	order := delta.Order{Items: make([]delta.Item, len(items)), Hot: hot}
	for i, it := range items {
		order.Items[i] = delta.Item{Object: it.Object, First: it.First, Pieces: it.Pieces}
	}
	return order, err
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

// recentPieces are kept, of at most toc.PieceSize each.
const recentPieces = 16

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
