package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// plan answers a wire.PlanRequest. Nothing but numbers and names of files goes out, and
// only to those who may have all the images.
func (s *Server) plan(w *response, r *http.Request, rec *record) error {
	var req wire.PlanRequest
	if err := s.decode(w, r, &req); err != nil {
		return err
	}
	rec.ref, rec.platform = req.Ref, req.Platform
	platform, err := parsePlatform(req.Platform)
	if err != nil {
		return err
	}
	ctx := r.Context()
	all := append([]wire.From{{Ref: req.Ref, Credentials: req.Credentials}}, req.From...)
	bundles := make([]*bundle, len(all))
	out := wire.NewWriter(w)
	for i, from := range all {
		ticket := ""
		if i == 0 {
			ticket = req.Ticket
		}
		img, err := s.image(ctx, from.Ref, platform, from.Credentials, ticket)
		if err == nil {
			err = served(img)
		}
		if err != nil {
			return inImage(from.Ref, err)
		}
		bundles[i] = &bundle{s: s, w: w, out: out, rec: rec, img: img, req: &wire.DeltaRequest{Ref: from.Ref, Platform: req.Platform, Credentials: from.Credentials}}
	}
	rec.digest = bundles[0].img.Manifest.Digest
	p, err := s.count(ctx, &req, bundles)
	if err == nil {
		bundles[0].bundleType()
		err = out.Plan(p)
	}
	if err != nil && w.began() && ctx.Err() == nil {
		// If this fails too, the bundle is truncated, which says the same.
		_ = out.Error(wireError(err))
	}
	return err
}

// inImage says which of several images an error is about.
func inImage(ref string, err error) error {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return &wire.Error{Code: e.Code, Message: loggable(ref) + ": " + e.Message}
	}
	return fmt.Errorf("%s: %w", loggable(ref), err)
}

// count makes the bundle that would answer the request, and counts what is in it. The
// first of the bundles is for the image itself, the others for what it is compared with.
func (s *Server) count(ctx context.Context, req *wire.PlanRequest, bundles []*bundle) (*wire.Plan, error) {
	have := req.Have
	var im *image
	for i, b := range bundles {
		prepared, err := b.prepare(ctx)
		if err != nil {
			return nil, inImage(b.req.Ref, err)
		}
		if i == 0 {
			im = prepared
			continue
		}
		for _, l := range prepared.layers {
			if !slices.ContainsFunc(have, func(h wire.Have) bool { return h.DiffID == l.DiffID }) {
				have = append(have, wire.Have{DiffID: l.DiffID})
			}
		}
	}
	if len(have) > wire.MaxHave {
		return nil, invalid("the images have too many layers")
	}
	b := bundles[0]
	b.req.Ticket, b.req.Have, b.req.Partial, b.req.Kinds = req.Ticket, have, req.Partial, req.Kinds
	var p *wire.Plan
	err := b.working(ctx, "plan", func(ctx context.Context) (err error) {
		p, err = s.dryRun(ctx, b, im, req.Top)
		return err
	})
	return p, err
}

// dryRun sends a bundle to a reader that counts.
func (s *Server) dryRun(ctx context.Context, b *bundle, im *image, top int) (*wire.Plan, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	dry := &bundle{s: s, out: wire.NewWriter(pw), rec: &record{}, req: b.req, img: b.img, dry: true}
	sent := make(chan error, 1)
	go func() {
		err := background.Guard(func() error { return dry.send(ctx, im) })()
		_ = pw.CloseWithError(err) // never fails
		sent <- err
	}()
	c := &counter{im: im, objects: map[uint32]*counted{}, done: &b.done}
	b.done.Store(0)
	err := c.read(wire.NewReader(pr), &b.total)
	_ = pr.CloseWithError(io.ErrClosedPipe) // never fails
	if serr := <-sent; serr != nil {
		return nil, serr
	}
	if err != nil {
		return nil, err
	}
	p := c.plan(b, dry.out.Written())
	if p.MostWire, err = s.library.unpatched(ctx, c, p.Wire); err != nil {
		return nil, err
	}
	known, err := s.strangers(ctx, b.req.Have)
	if err != nil {
		return nil, err
	}
	p.Strange = len(b.req.Have) - known
	p.Files, err = s.library.files(ctx, c, top)
	return p, err
}

// strangers counts the layers among what a worker has that are known here.
func (s *Server) strangers(ctx context.Context, have []wire.Have) (known int, err error) {
	for _, h := range have {
		_, err := s.library.have(ctx, h.DiffID)
		switch {
		case err == nil:
			known++
		case !errors.Is(err, meta.ErrNotFound):
			return 0, err
		}
	}
	return known, nil
}

// counter counts what a bundle brings, by object.
type counter struct {
	im      *image
	header  *wire.Header
	objects map[uint32]*counted
	wire    int64 // of data frames
	done    *atomic.Int64
}

// counted is an object that is in a bundle.
type counted struct {
	object  uint32
	bytes   int64 // of its pieces
	wire    float64
	patched bool
}

// read reads a bundle to its end.
func (c *counter) read(r *wire.Reader, total *atomic.Int64) error {
	r.Detach()
	for {
		f, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case f.Header != nil:
			c.header = f.Header
			total.Store(f.Header.Bytes)
		case f.Data != nil:
			c.data(f.Data)
			f.Data.Release()
		}
	}
}

// data shares the bytes of a frame among its entries, by their length before they were
// compressed together.
func (c *counter) data(d *wire.Data) {
	c.wire += int64(d.Wire)
	each := float64(d.Wire) / float64(max(d.Size(), 1))
	for i := range d.Index {
		e := &d.Index[i]
		o := c.objects[e.Object]
		if o == nil {
			o = &counted{object: e.Object}
			c.objects[e.Object] = o
		}
		o.wire += each * float64(e.Length)
		if e.Kind == wire.KindBase {
			o.patched = true
			continue
		}
		n := int64(c.im.delta.Objects[e.Object].PieceLen(int(e.Piece)))
		o.bytes += n
		c.done.Add(n)
	}
}

// plan is what was counted.
func (c *counter) plan(b *bundle, wired int64) *wire.Plan {
	h := c.header
	p := &wire.Plan{
		Manifest: b.img.Manifest.Digest, Layers: len(h.Layers),
		Total: wire.Share{Objects: h.TotalObjects, Bytes: h.TotalBytes},
		Local: wire.Share{Objects: h.TotalObjects - h.Objects, Bytes: h.TotalBytes - h.Bytes},
		Wire:  wired, Metadata: wired - c.wire,
	}
	known := map[toc.Digest]bool{}
	for _, have := range b.req.Have {
		known[have.DiffID] = true
	}
	for _, l := range h.Layers {
		p.LayerBytes += l.Size
		if known[l.DiffID] {
			p.KnownLayers++
		} else {
			p.PlainBytes += l.Size
		}
	}
	for _, o := range c.objects {
		share := &p.New
		if o.patched {
			share = &p.Patched
		}
		share.Objects++
		share.Bytes += o.bytes
		share.Wire += int64(o.wire)
	}
	return p
}

// unpatched is what a bundle of so many bytes has if its patches are sent as they are
// stored.
func (l *library) unpatched(ctx context.Context, c *counter, wired int64) (int64, error) {
	packs := l.packSet(c.im.packKeys())
	defer packs.close()
	for _, o := range c.objects {
		if !o.patched {
			continue
		}
		at := c.im.delta.Place(o.object)
		p, err := packs.get(ctx, at.Layer)
		if err != nil {
			return 0, err
		}
		stored := int64(0)
		for i := range c.im.delta.Objects[o.object].NumPieces() {
			stored += int64(p.Stored(at.Object, i))
		}
		wired += max(stored-int64(o.wire), 0)
	}
	return wired, nil
}

// files names the objects that take most.
func (l *library) files(ctx context.Context, c *counter, top int) ([]wire.PlanFile, error) {
	most := make([]*counted, 0, len(c.objects))
	for _, o := range c.objects {
		most = append(most, o)
	}
	slices.SortFunc(most, func(a, b *counted) int {
		return cmp.Or(cmp.Compare(b.wire, a.wire), cmp.Compare(a.object, b.object))
	})
	most = most[:min(top, len(most))]
	out := make([]wire.PlanFile, 0, len(most))
	if len(most) == 0 {
		return out, nil
	}
	paths, err := l.paths(ctx, c.im)
	if err != nil {
		return nil, err
	}
	for _, o := range most {
		out = append(out, wire.PlanFile{Path: short(paths[o.object]), Bytes: o.bytes, Wire: int64(o.wire), Patched: o.patched})
	}
	return out, nil
}

// short keeps paths within the limit, by their end.
func short(path string) string {
	const cut = "…"
	path = strings.ToValidUTF8(path, "\uFFFD")
	if len(path) > wire.MaxPath {
		return cut + strings.ToValidUTF8(path[len(path)-wire.MaxPath+len(cut):], "")
	}
	return path
}
