package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// delta answers a wire.DeltaRequest.
func (s *Server) delta(w *response, r *http.Request, rec *record) error {
	var req wire.DeltaRequest
	if err := s.decode(w, r, &req); err != nil {
		return err
	}
	rec.ref, rec.platform = req.Ref, req.Platform
	settle := s.joint.arrive(req.Worker, req.Request)
	defer settle(nil)
	platform, err := parsePlatform(req.Platform)
	if err != nil {
		return err
	}
	ctx := r.Context()
	w.pace = newPacer(ctx)
	defer w.pace.end()
	img, err := s.image(ctx, req.Ref, platform, req.Credentials, req.Ticket)
	if err != nil {
		return err
	}
	rec.digest = img.Manifest.Digest
	if err := served(img); err != nil {
		return err
	}
	if !req.HaveManifest.IsZero() && req.HaveManifest != img.Manifest.Digest {
		return invalid("the reference does not lead to the manifest that the worker has")
	}
	b := &bundle{s: s, w: w, out: wire.NewWriter(w), rec: rec, req: &req, img: img, settle: settle}
	im, err := b.prepare(ctx)
	if im != nil {
		defer s.hold(im, req.Have)()
	}
	switch {
	case err != nil:
	case b.progressed.Load():
		err = b.out.Retry()
	default:
		b.bundleType()
		err = b.send(ctx, im)
	}
	if im != nil {
		b.seen(ctx)
	}
	s.cfg.Metrics.bundleBytes.Add(float64(b.out.Written()))
	if err != nil && w.began() && ctx.Err() == nil {
		// If this fails too, the bundle is truncated, which says the same.
		_ = b.out.Error(wireError(err))
	}
	return err
}

// hold keeps the layers of an image, and those that a worker has.
func (s *Server) hold(im *image, have []wire.Have) (release func()) {
	layers := make([]toc.Digest, 0, len(im.layers)+len(have))
	for _, m := range im.layers {
		layers = append(layers, m.DiffID)
	}
	for _, h := range have {
		layers = append(layers, h.DiffID)
	}
	return s.cfg.Retention.Hold(layers)
}

// served tells whether an image is of a shape that can be served.
func served(img *registry.Image) error {
	switch {
	case len(img.Inner) > 0:
		return &wire.Error{Code: wire.CodeUnsupported, Message: "an index within an index"}
	case len(img.Layers) > wire.MaxLayers:
		return &wire.Error{Code: wire.CodeUnsupported, Message: fmt.Sprintf("an image of %d layers", len(img.Layers))}
	}
	return nil
}

// image finds an image and makes sure that the client may have it: as the registry
// says so now, or, if the client shows no credentials but a ticket, said so before.
func (s *Server) image(ctx context.Context, ref string, platform ocispec.Platform, creds *wire.Credentials, ticket string) (*registry.Image, error) {
	if creds == nil && ticket != "" && s.cfg.Tickets.Good(ticket, ref, time.Now()) {
		img, err := s.cfg.Registry.Known(ctx, ref, platform)
		if !errors.Is(err, meta.ErrNotFound) {
			return img, err
		}
	}
	return s.cfg.Registry.Image(ctx, ref, platform, creds)
}

// seen tells where the tag leads, once the worker has its answer.
func (b *bundle) seen(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.s.cfg.Limits.Plan)
	defer cancel()
	if err := b.s.cfg.Patches.Seen(ctx, b.img.Name, b.img.Tag, b.req.Platform, b.img.Manifest.Digest); err != nil {
		b.s.cfg.Log.Warn("no patches are made ahead", "ref", loggable(b.req.Ref), "error", err)
	}
}

// bundle is one answer to a delta request.
type bundle struct {
	s   *Server
	w   *response
	out *wire.Writer
	rec *record
	req *wire.DeltaRequest
	img *registry.Image
	// settle, if not nil, tells requests that wait for this one what it brings.
	settle func(*stream)

	done, total atomic.Int64 // of the ingest
	progressed  atomic.Bool  // a progress frame was written: only retry can follow
	dry         bool         // nobody gets it
}

// prepare makes the image ready to be planned. While that takes time, it writes
// progress frames: at once if there is something to ingest, so that the worker does
// not hold its other requests back, else when nothing was heard for a while.
func (b *bundle) prepare(ctx context.Context) (*image, error) {
	layers, err := b.s.cfg.Ingester.Ready(ctx, b.img)
	if err != nil {
		return nil, err
	}
	if layers == nil {
		release, ok := b.s.waiting.take()
		if !ok {
			return nil, busy("too many images are being ingested")
		}
		defer release()
		b.s.cfg.Metrics.waiting.Inc()
		defer b.s.cfg.Metrics.waiting.Dec()
		b.rec.ingested = true
		b.total.Store(b.img.Size())
		if err := b.progress("ingest"); err != nil {
			return nil, err
		}
	}
	var im *image
	err = b.working(ctx, "ingest", func(ctx context.Context) (err error) {
		if layers == nil {
			if layers, err = b.ingest(ctx); err != nil {
				return err
			}
		}
		im, err = b.s.library.image(ctx, b.img, layers)
		return err
	})
	return im, err
}

// working writes progress frames while f runs, unless that is done at once.
func (b *bundle) working(ctx context.Context, stage string, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var failed error
	finished := make(chan struct{})
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() {
		defer close(finished)
		failed = background.Guard(func() error { return f(ctx) })()
	})
	tick := time.NewTicker(wire.ProgressInterval * 8 / 10) // the rest is for the way
	defer tick.Stop()
	for {
		select {
		case <-finished:
			return failed
		case <-tick.C:
			if err := b.progress(stage); err != nil {
				return err
			}
		}
	}
}

func (b *bundle) ingest(ctx context.Context) ([]*meta.Layer, error) {
	limit, cancel := context.WithTimeout(ctx, b.s.cfg.Limits.IngestWait)
	defer cancel()
	layers, err := b.s.cfg.Ingester.Image(limit, b.img, b.req.Credentials, func(done, total int64) {
		b.done.Store(done)
		b.total.Store(total)
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil, busy("the image is still being ingested")
	}
	return layers, err
}

func (b *bundle) progress(stage string) error {
	b.progressed.Store(true)
	if b.settle != nil {
		b.settle(nil)
	}
	b.bundleType()
	return b.out.Progress(wire.Progress{Stage: stage, Done: b.done.Load(), Total: b.total.Load()})
}

func (b *bundle) bundleType() {
	h := b.w.Header()
	h.Set("Content-Type", wire.BundleType)
	h.Set("Cache-Control", "no-store") // it was made for one client's credentials
}

// send plans and writes the bundle.
func (b *bundle) send(ctx context.Context, im *image) error {
	release, ok := b.s.bundles.take()
	if !ok {
		return busy("too many bundles are under way")
	}
	defer release()
	began := time.Now()
	inventory, bases, err := b.s.library.inventory(ctx, im, b.req.Have)
	if err != nil {
		return err
	}
	order, err := b.s.library.current(ctx, im)
	if err != nil {
		return err
	}
	before, after, err := b.s.joint.before(ctx, b.req.Worker, b.req.After)
	if err != nil {
		return err
	}
	inventory = append(inventory, planned(im, before)...)
	inventory = append(inventory, delta.Inventory{Partial: b.req.Partial})
	plan := delta.Make(im.delta, inventory, order)
	taken := b.s.streams.take(im, b.req.Worker, order, plan)
	if len(taken) > 0 {
		plan = delta.Make(im.delta, append(inventory, delta.Inventory{Lacks: taken}), order)
	}
	patches, err := b.s.patching(ctx, im, plan, b.req)
	if err != nil {
		return err
	}
	defer patches.close()
	if b.dry && patches != nil {
		patches.Patient = true
	}
	b.rec.plan = time.Since(began)
	b.s.cfg.Metrics.plan.Observe(b.rec.plan.Seconds())

	st := b.s.streams.open(reference(b.img), b.req.Worker, im, plan)
	whole := false
	defer func() { b.s.streams.close(st, whole) }()
	if !b.req.HeaderOnly && b.settle != nil {
		b.settle(st)
	}
	b.s.cfg.Metrics.streams.Inc()
	defer b.s.cfg.Metrics.streams.Dec()
	h := &wire.Header{
		Stream: st.name, Plan: plan.Digest, Bases: patches.bases(), Ticket: b.ticket(), After: after, Taken: taken,
		Objects: plan.Objects, Bytes: plan.Bytes,
		TotalObjects: plan.TotalObjects, TotalBytes: plan.TotalBytes,
	}
	if err := b.head(ctx, im, h, bases, before); err != nil {
		return err
	}
	if b.req.Local && len(plan.Local) > 0 {
		if err := b.out.Local(plan.Local[:min(len(plan.Local), wire.MaxLocal)]); err != nil {
			return err
		}
	}
	if !b.req.HeaderOnly {
		b.rec.objects, b.rec.bytes = plan.Objects, plan.Bytes
		if err := b.data(ctx, im, plan, patches, st); err != nil {
			return err
		}
	}
	err = b.out.End()
	whole = err == nil && !b.req.HeaderOnly && !b.dry // a dry run is on no link
	return err
}

// ticket is a new one if the registry has just been asked: with old ones alone nobody
// goes on for ever.
func (b *bundle) ticket() string {
	image := reference(b.img)
	if b.req.Credentials == nil && b.s.cfg.Tickets.Good(b.req.Ticket, image, time.Now()) {
		return b.req.Ticket
	}
	return b.s.cfg.Tickets.Issue(image, time.Now())
}

// head completes the header, and writes all that comes before the first data frame.
func (b *bundle) head(ctx context.Context, im *image, h *wire.Header, bases []*layer, before []*stream) error {
	documents := []*registry.Blob{&b.img.Manifest, &b.img.Config}
	if b.img.Index != nil {
		documents = append([]*registry.Blob{b.img.Index}, documents...)
	}
	for _, d := range documents {
		h.Blobs = append(h.Blobs, wire.Blob{MediaType: d.MediaType, Digest: d.Digest, Size: int64(len(d.Bytes))})
	}
	known := make(map[toc.Digest]bool, len(b.req.Have))
	for _, have := range b.req.Have {
		known[have.DiffID] = true
	}
	for _, st := range before {
		for _, m := range st.img.layers {
			known[m.DiffID] = true
		}
	}
	var send []int
	for i, m := range im.layers {
		up := b.img.Layers[i]
		l := wire.Layer{DiffID: m.DiffID, Digest: up.Digest, Size: up.Descriptor.Size, MediaType: up.Descriptor.MediaType, TOC: m.TOC}
		if l.Sent = !known[m.DiffID]; l.Sent {
			known[m.DiffID] = true // the next one with this diff ID
			send = append(send, i)
			if base := bases[i]; base != nil {
				l.Base = &wire.Base{DiffID: base.rec.DiffID, TOC: base.rec.TOC}
			}
		}
		h.Layers = append(h.Layers, l)
	}
	if err := b.out.Header(h); err != nil {
		return err
	}
	if b.req.HaveManifest.IsZero() {
		for _, d := range documents {
			if err := b.out.Blob(d.Bytes); err != nil {
				return err
			}
		}
	}
	if err := b.out.Flush(); err != nil {
		return err
	}
	for _, i := range send {
		f, err := b.s.library.tocFrame(ctx, im.layers[i], bases[i])
		if err != nil {
			return err
		}
		if err := f.write(b.out); err != nil {
			return err
		}
	}
	return b.out.Flush()
}

// data writes the data frames.
func (b *bundle) data(ctx context.Context, im *image, plan *delta.Plan, patches *patching, st *stream) error {
	packs := b.s.library.packSet(im.packKeys())
	defer packs.close()
	if !b.dry {
		b.w.stream = st
		if g := newGauge(ctx, b.w.pace); g != nil && patches != nil {
			patches.Link = g.rate
		}
	}
	var skipped []delta.Item
	skip := func(object uint32, piece int) bool {
		st.moved.Store(time.Now().UnixNano())
		if !st.claims.Skip(object, piece) {
			if piece == 0 && !b.dry {
				b.s.cfg.Metrics.bundleObjects.Inc()
			}
			return false
		}
		skipped = append(skipped, delta.Item{Object: object, First: uint32(piece), Pieces: 1})
		return true
	}
	steer := delta.Steer{
		Skip: skip, Urgent: st.claims.Urgent, Patcher: patches.patcher(),
		Pause: func(item, size int) func(context.Context) { return b.s.streams.pause(st, item, size) },
	}
	if b.s.fresh != nil && b.req.Kinds.Has(wire.FilterKinds) {
		file, err := b.s.fresh.open(ctx, im)
		if err != nil {
			return err
		}
		if file != nil {
			defer file.release()
			steer.Frames = &delta.FrameSource{Frames: file.Frames, Claims: st.claims}
			defer func() {
				if !b.dry {
					b.s.cfg.Metrics.bundleObjects.Add(float64(steer.Frames.Objects))
				}
			}()
		}
	}
	if err := delta.Stream(ctx, b.out, im.delta, plan, packs.pack, steer); err != nil {
		return err
	}
	if !st.failed.Load() {
		return nil
	}
	// An answer to a request for single objects broke off: what it claimed may
	// not have got through.
	return delta.Stream(ctx, b.out, im.delta, &delta.Plan{Items: skipped}, packs.pack, delta.Steer{})
}

// inventory loads what the worker has, as far as it is of use for the image: the
// layers of the image itself as they are, of all others only the objects that the
// image has too. For each layer of the image, bases has the one among the others
// that resembles it most, or nil.
func (l *library) inventory(ctx context.Context, im *image, have []wire.Have) (_ []delta.Inventory, bases []*layer, _ error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Limits.Plan)
	defer cancel()
	own := make(map[toc.Digest]bool, len(im.layers))
	for _, m := range im.layers {
		own[m.DiffID] = true
	}
	inventory := make([]delta.Inventory, 0, len(have))
	bases = make([]*layer, len(im.layers))
	most, likeness := make([]int, len(im.layers)), make([]int, len(im.layers))
	for _, h := range have {
		ly, err := l.have(ctx, h.DiffID)
		if errors.Is(err, meta.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if own[h.DiffID] {
			inventory = append(inventory, delta.Inventory{TOC: ly.toc, Missing: h.Missing})
			continue
		}
		clear(likeness)
		shared := &toc.TOC{DiffID: h.DiffID}
		for i := range ly.toc.Objects {
			missing := i/8 < len(h.Missing) && h.Missing[i/8]&(1<<(i%8)) != 0
			id, ok := im.delta.Index(ly.toc.Objects[i].Digest)
			if !ok {
				continue
			}
			likeness[im.delta.Place(id).Layer]++
			if !missing {
				shared.Objects = append(shared.Objects, ly.toc.Objects[i])
			}
		}
		for i, n := range likeness {
			if n > most[i] {
				most[i], bases[i] = n, ly
			}
		}
		if len(shared.Objects) > 0 {
			inventory = append(inventory, delta.Inventory{TOC: shared})
		}
	}
	return inventory, bases, nil
}

// reference names an image by its digest.
func reference(img *registry.Image) string { return img.Name + "@" + img.Manifest.Digest.String() }

// parsePlatform reads os/arch[/variant].
func parsePlatform(s string) (ocispec.Platform, error) {
	parts := strings.Split(s, "/")
	if len(s) > 128 || len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return ocispec.Platform{}, invalid("platform is not os/arch[/variant]")
	}
	p := ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}
