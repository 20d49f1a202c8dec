package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/tracing"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.opentelemetry.io/otel/trace"

	"github.com/starlight-delta/starlight/plugins/internal/delta"
	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// PullRequest asks for an image.
type PullRequest struct {
	// Namespace of containerd, for the status only.
	Namespace string
	// Ref is the fully qualified name of the image: what Status calls it.
	Ref string
	// Unnamed: Ref is not the image's name, which only the client knows. See Name.
	Unnamed  bool
	Platform ocispec.Platform // wanted
	// Also: the image is pulled for another platform, too, which is meant where Ref is
	// asked for without one.
	Also bool
	// Credentials, if not nil, gives those of the client for the host of Ref.
	Credentials func(ctx context.Context, host string) (*wire.Credentials, error)
	// Registry, if not nil, fetches from the registry as the client would: the
	// source of last resort when no proxyd can complete the image. It may be
	// called long after Pull has returned.
	Registry func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	// Ingest, if not nil, is told how far proxyd is with an image it did not know.
	Ingest func(wire.Progress)
}

// Pull is an image whose metadata is local. Its chains are known to the
// snapshotter, its layers to the content store; its contents are on the way.
type Pull struct {
	// Target is what the reference resolves to: index or manifest.
	Target ocispec.Descriptor
	// Manifest and Config of the platform. Manifest == Target without an index.
	Manifest, Config ocispec.Descriptor
	Layers           []ocispec.Descriptor
	DiffIDs          []digest.Digest

	documents map[digest.Digest][]byte
	release   func()
}

// ErrNotAccelerated is wrapped by every error of Pull after which the image should
// be pulled as stock containerd does. Its text says why.
var ErrNotAccelerated = errors.New("not accelerated")

// errUnnamed is wrapped by the refusal of an image for Config.RequireTOCDigests.
var errUnnamed = errors.New("require_toc_digests is set, and the manifest does not name the tables of contents of all layers: have ctr-starlight convert make an image that does")

// ref is a reference that was pulled.
type ref struct {
	rec refRecord
	img *image // nil: plain
	// counted is how much of what img's meter says is in rec, once the image is whole.
	counted int64
}

// Pull gets the metadata of an image from a proxyd and starts the stream of its
// contents, which goes on after Pull returns and after ctx ends. Errors wrap
// ErrNotAccelerated unless ctx ended.
//
// Until Release nothing of the image is collected by Sweep.
func (e *Engine) Pull(ctx context.Context, r PullRequest) (_ *Pull, err error) {
	start := time.Now()
	ctx, span := startSpan(ctx, "pull", r.Ref, nil)
	defer func() {
		span.SetStatus(err)
		span.End()
	}()
	name, host, err := splitRef(r.Ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotAccelerated, err)
	}
	proxies := e.proxiesFor(host)
	if len(proxies) == 0 {
		return nil, fmt.Errorf("%w: no proxy is configured for registry %q", ErrNotAccelerated, host)
	}
	src := source{ref: canonical(r.Ref), host: host, platform: platforms.Format(r.Platform), registry: r.Registry}
	if r.Credentials != nil {
		if src.creds, err = r.Credentials(ctx, host); err != nil {
			return nil, fmt.Errorf("%w: credentials for %q: %w", ErrNotAccelerated, host, err)
		}
	}
	var failures []error
	for _, p := range proxies {
		s, m, err := e.open(ctx, p, name, src, r.Ingest)
		if err == nil {
			return e.pulled(ctx, r, s, m, start)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		failures = append(failures, err)
		if errdefs.IsUnauthorized(err) || errdefs.IsNotFound(err) || errors.Is(err, errUnnamed) {
			break // is what the registry, or the manifest, says: other proxies would say the same
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrNotAccelerated, errors.Join(failures...))
}

// pulled finishes a pull whose image has been admitted.
func (e *Engine) pulled(ctx context.Context, r PullRequest, s *stream, m *delta.Metadata, start time.Time) (*Pull, error) {
	p := &Pull{
		Target: m.Target().Descriptor, Manifest: m.Manifest.Descriptor, Config: m.Config.Descriptor,
		Layers: m.ImageManifest.Layers, DiffIDs: m.ImageConfig.RootFS.DiffIDs,
		documents: map[digest.Digest][]byte{}, release: s.unpin,
	}
	for _, d := range []*delta.Document{m.Index, m.Manifest, m.Config} {
		if d != nil {
			p.documents[d.Digest] = d.Bytes
		}
	}
	key := refKey{namespace: r.Namespace, ref: r.Ref}
	if r.Also {
		key.platform = platforms.Format(r.Platform)
	}
	rec := refRecord{
		Target: p.Target.Digest, Manifest: s.img.digest, Proxy: s.proxy.Address, Pulled: start,
		WireBytes: s.header, RoundTrips: s.turns, Ready: time.Since(start), Unnamed: r.Unnamed,
	}
	e.mu.Lock()
	counted := int64(0)
	if s.img.rec.Complete {
		rec.Done = rec.Ready
		if m.Header.Objects > 0 { // all of them have come already
			counted = s.img.meter.total.Load()
			rec.WireBytes += counted
		}
	}
	e.refs[key] = &ref{rec, s.img, counted}
	img := s.img.rec
	e.mu.Unlock()
	log.G(ctx).WithFields(log.Fields{
		"ref": r.Ref, "proxy": s.proxy.Address, "roundtrips": s.turns, "bytes": s.header,
		"objects": m.Header.Objects, "total_objects": m.Header.TotalObjects, "duration": rec.Ready,
	}).Debug("image metadata pulled")
	e.metrics.pulled(rec.Ready, s)
	if rec.Done > 0 {
		e.whole(ctx, key, rec, img)
	}
	if err := e.state.putRef(key, rec); err != nil {
		p.Release()
		return nil, fmt.Errorf("%w: %w", ErrNotAccelerated, err)
	}
	failpoint.Here("pull-recorded")
	return p, nil
}

// Blob returns the bytes of Target, Manifest or Config.
func (p *Pull) Blob(d digest.Digest) ([]byte, bool) {
	b, ok := p.documents[d]
	return b, ok
}

// Release ends the protection from Sweep. The caller has made snapshots by then.
// It may be called more than once.
func (p *Pull) Release() { p.release() }

// open asks one proxy for an image, admits the answer, and starts to read the
// contents in the background.
func (e *Engine) open(ctx context.Context, p *proxy, name string, src source, progress func(wire.Progress)) (*stream, *delta.Metadata, error) {
	req := wire.DeltaRequest{Ref: src.ref, Worker: e.worker, Platform: src.platform, Credentials: src.creds, Local: true}
	s := &stream{e: e, proxy: p, span: trace.SpanFromContext(ctx)}
	forget := false // ask as if we had nothing
	for {
		m, err := e.header(ctx, s, req, forget, progress, func(m *delta.Metadata) error {
			if e.cfg.RequireTOCDigests && m.Unnamed > 0 {
				return fmt.Errorf("manifest %s (%d of %d layers): %w", m.Manifest.Digest, m.Unnamed, len(m.Header.Layers), errUnnamed)
			}
			_, err := e.admit(ctx, m, s, src, name)
			return err
		})
		switch {
		case errors.Is(err, delta.ErrRetry):
			continue
		case errors.Is(err, delta.ErrOtherTOC) && !forget:
			forget = true
			continue
		case err != nil:
			return nil, nil, err
		}
		s.img.meter.turns.Add(1)
		e.run(s.img, func(ctx context.Context) { e.receive(ctx, s) })
		e.watch(s.img)
		return s, m, nil
	}
}

// header makes one request and reads its answer to the end of the header, behind
// the gate, except while the proxyd tells that it is still working, or is silent.
func (e *Engine) header(ctx context.Context, s *stream, req wire.DeltaRequest, forget bool, progress func(wire.Progress), admit func(*delta.Metadata) error) (_ *delta.Metadata, err error) {
	g, err := e.gate.enter(ctx, s.proxy)
	if err != nil {
		return nil, err
	}
	defer g.leave()
	// The stream outlives ctx, but not before its header is admitted.
	sctx, cancel := context.WithCancel(e.ctx)
	stop := context.AfterFunc(ctx, cancel)
	defer func() {
		if err != nil {
			if s.bundle != nil {
				_ = s.bundle.Close() // before cancel, so that the connection stays warm
			}
			cancel()
			s.discard()
			if s.unbase != nil {
				s.unbase()
			}
		}
	}()
	if !s.plain {
		req.Kinds = kinds
	}
	if !forget {
		req.Have = e.inventory()
	}
	req.Partial = e.partials()
	req.Request, req.After = g.name, g.after()
	ctx, span := startSpan(ctx, "request", req.Ref, s.proxy)
	defer func() {
		span.SetStatus(err)
		span.End()
	}()
	s.turns++
	if s.bundle, err = s.proxy.client.Delta(sctx, req); err != nil { //nolint:contextcheck // the stream outlives ctx
		return nil, err
	}
	// What others get may be left out, and what they were given need not be sent again.
	if err := g.first(ctx); err != nil {
		return nil, err
	}
	if len(g.ahead) > 0 {
		req.Have = e.since(req.Have)
	}
	_, headerSpan := startSpan(ctx, "header", req.Ref, s.proxy)
	m, err := delta.ReadHeader(s.bundle, req, delta.Held{TOC: e.tocDigest, Encoded: e.baseTOC, Rests: g.rests}, func(p wire.Progress) {
		g.leave()
		if progress != nil {
			progress(p)
		}
	})
	headerSpan.SetAttributes(tracing.Attribute("bytes", s.bundle.WireBytes()))
	headerSpan.SetStatus(err)
	headerSpan.End()
	s.header += s.bundle.WireBytes() + s.bundle.RequestBytes()
	e.metrics.received.WithLabelValues(string(fromStream)).Add(float64(s.bundle.WireBytes()))
	if err != nil {
		return nil, err
	}
	// Its objects may have been asked for by others since it left. What they
	// claimed is received twice, which is harmless.
	if err := g.back(ctx); err != nil {
		return nil, err
	}
	if err := e.holdBases(s, m.Header.Bases); err != nil {
		return nil, err
	}
	if err := admit(m); err != nil {
		return nil, err
	}
	g.admit()
	e.pin(s)
	if !stop() { // ctx ended, and with it sctx
		s.unpin()
		return nil, ctx.Err()
	}
	s.cancel, s.id = cancel, m.Header.Stream
	return m, nil
}

// inventory is what the node has, or is about to get from streams under way.
func (e *Engine) inventory() []wire.Have {
	e.mu.Lock()
	defer e.mu.Unlock()
	have := make([]wire.Have, 0, len(e.layers))
	for _, l := range e.layers {
		if len(have) == wire.MaxHave {
			break
		}
		missing, coming := e.lacks(l)
		have = append(have, wire.Have{DiffID: l.diffID, Missing: missing, Coming: coming})
	}
	return have
}

// since adds to what a request said to have the layers that have become known.
func (e *Engine) since(have []wire.Have) []wire.Have {
	said := make(map[toc.Digest]bool, len(have))
	for _, h := range have {
		said[h.DiffID] = true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for d := range e.layers {
		if !said[d] {
			have = append(have, wire.Have{DiffID: d})
		}
	}
	return have
}

// partials are the large objects that have come in part.
func (e *Engine) partials() []wire.Partial {
	var out []wire.Partial
	for _, p := range e.objects.Partials(wire.MaxPartial) {
		out = append(out, wire.Partial{Object: p.Digest, Pieces: p.Pieces})
	}
	return out
}

// lacks is the bitmaps of the objects of l that are neither local nor claimed, and
// of those that are claimed; nil if there are none. Engine.mu is held.
func (e *Engine) lacks(l *layer) (missing, coming []byte) {
	if l.complete {
		return nil, nil
	}
	set := func(bits *[]byte, i int) {
		if *bits == nil {
			*bits = make([]byte, (len(l.objects)+7)/8)
		}
		(*bits)[i/8] |= 1 << (i % 8)
	}
	local := true
	for i, o := range l.objects {
		if e.objects.Has(o.Digest) {
			continue
		}
		local = false
		if e.claims[o.Digest] != nil {
			set(&coming, i)
		} else {
			set(&missing, i)
		}
	}
	l.complete = local
	return missing, coming
}

func (e *Engine) tocDigest(d toc.Digest) (toc.Digest, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.layers[d]; l != nil {
		return l.encoded, true
	}
	return toc.Digest{}, false
}

// baseTOC returns the encoded TOC of a layer for delta.Held. One that cannot be read is
// forgotten: the next request asks for it.
func (e *Engine) baseTOC(d toc.Digest) ([]byte, error) {
	e.mu.Lock()
	l := e.layers[d]
	e.mu.Unlock()
	if l == nil {
		return nil, fs.ErrNotExist
	}
	b, err := e.encodedTOC(l)
	if err != nil {
		return nil, errors.Join(err, e.forgetLayer(l))
	}
	return b, nil
}

// pin protects the image of s from Sweep until s.unpin.
func (e *Engine) pin(s *stream) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if top := s.img.top(); top != nil && !s.pinned {
		s.pinned = true
		e.pins[top.id]++
	}
}

func (s *stream) unpin() {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	if s.pinned {
		s.pinned = false
		id := s.img.top().id
		if s.e.pins[id]--; s.e.pins[id] == 0 {
			delete(s.e.pins, id)
		}
	}
}

// Plain records that an image was pulled without acceleration, and why.
func (e *Engine) Plain(namespace, name string, why error) {
	rec := refRecord{Pulled: time.Now()}
	if why != nil {
		rec.Reason = why.Error()
	}
	e.plain(refKey{namespace: namespace, ref: name}, rec)
}

func (e *Engine) plain(key refKey, rec refRecord) {
	e.mu.Lock()
	e.refs[key] = &ref{rec: rec}
	e.mu.Unlock()
	e.metrics.pulls.WithLabelValues(ModePlain).Inc()
	if err := e.state.putRef(key, rec); err != nil {
		log.G(e.ctx).WithError(err).WithField("ref", key.ref).Warn("status of a plain pull is not kept")
	}
}

// splitRef takes "host/repo[:tag][@digest]" apart into "host/repo" and "host".
func splitRef(ref string) (name, host string, err error) {
	name, _, _ = strings.Cut(ref, "@")
	host, repo, ok := strings.Cut(name, "/")
	if !ok || host == "" || repo == "" {
		return "", "", fmt.Errorf("reference %q is not host/repository:tag: %w", ref, errdefs.ErrInvalidArgument)
	}
	if i := strings.LastIndexByte(repo, ':'); i >= 0 {
		repo = repo[:i]
	}
	return host + "/" + repo, host, nil
}

// canonical is a reference as proxyd wants it: without the tag if it has a digest,
// which decides.
func canonical(ref string) string {
	if _, dgst, ok := strings.Cut(ref, "@"); ok {
		if name, _, err := splitRef(ref); err == nil {
			return name + "@" + dgst
		}
	}
	return ref
}

func hostOf(name string) string {
	host, _, _ := strings.Cut(name, "/")
	return host
}
