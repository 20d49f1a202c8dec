package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/containerd/v2/pkg/tracing"
	"github.com/containerd/log"
	"go.opentelemetry.io/otel/trace"

	"github.com/starlight-delta/starlight/plugins/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// stream is one bundle of an image, from its request to its end.
type stream struct {
	e       *Engine
	img     *image
	proxy   *proxy
	id      string // wire.Header.Stream
	bundle  *delta.Bundle
	cancel  context.CancelFunc
	claimed []toc.Digest   // what it will bring
	bases   [][]toc.Object // of the layers that patches are made against
	unbase  func()         // ends their protection from Sweep, or nil
	header  int64          // bytes of requests and headers, both ways
	turns   int64
	pinned  bool // Engine.mu guards it
	plain   bool // asks for no other kinds of entries
	// What of the image was local when the header came.
	localObjects, localBytes int64
	span                     trace.Span // of the pull: what the stream does is told below it
}

// discard gives back what s claimed and did not bring, so that others ask for it.
func (s *stream) discard() {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	for _, d := range s.claimed {
		if s.e.claims[d] == s {
			delete(s.e.claims, d)
		}
	}
	s.claimed = nil
	for _, img := range s.e.images {
		if img.pending != nil {
			img.broadcast() // anyone may have relied on s
		}
	}
}

// receive reads the data frames of s to the end.
func (e *Engine) receive(ctx context.Context, s *stream) {
	defer s.cancel()
	if s.unbase != nil {
		defer s.unbase()
	}
	img := s.img
	defer context.AfterFunc(img.ctx, s.cancel)() //nolint:contextcheck // ends when the image is removed
	e.mu.Lock()
	p := img.pending
	if p == nil {
		p = img.objectList() // complete: at most the end comes, or what we have
	}
	if len(s.claimed) > 0 {
		img.main = s
	}
	ref := img.source.ref
	e.mu.Unlock()
	_, span := startSpan(trace.ContextWithSpan(ctx, s.span), "body", ref, s.proxy)
	defer span.End()
	err := e.store(ctx, s.bundle, img, p, s.bases, fromStream)
	span.SetAttributes(tracing.Attribute("bytes", s.bundle.WireBytes()))
	span.SetStatus(err)
	_ = s.bundle.Close()
	e.mu.Lock()
	img.failure = err
	if img.main == s {
		img.main = nil
	}
	e.mu.Unlock()
	s.discard()
	if err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithFields(log.Fields{"ref": ref, "proxy": s.proxy.Address}).Warn("stream broke off")
	}
}

// watch makes sure that somebody sees to it that img becomes complete.
func (e *Engine) watch(img *image) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if img.watched || img.pending == nil {
		return
	}
	img.watched = e.runLocked(img, func(ctx context.Context) { e.supervise(ctx, img) })
}

// patience with proxies, after which the registry is asked for whole layers.
const patience = 4 // failed requests in a row, to each proxy

// supervise asks again for what an image lacks, for as long as it takes.
func (e *Engine) supervise(ctx context.Context, img *image) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, 30*time.Second
	for failures := 0; ; {
		e.mu.Lock()
		p, changed := img.pending, img.changed
		missing := p != nil && p.objects > 0
		orphans := missing && e.orphans(p)
		e.mu.Unlock()
		switch {
		case !missing:
			err := e.finish(ctx, img)
			if err == nil || ctx.Err() != nil {
				return
			}
			log.G(ctx).WithError(err).WithField("ref", e.sourceOf(img).ref).Error("image is complete but not marked so; trying again")
			if !sleep(ctx, pause.NextBackOff()) {
				return
			}
			continue
		case !orphans: // streams under way will bring everything
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			continue
		}
		before := p.objects
		err := e.again(ctx, img, failures)
		if ctx.Err() != nil {
			return
		}
		e.mu.Lock()
		progress := img.pending != nil && img.pending.objects < before
		if err != nil {
			img.failure = err
		}
		e.mu.Unlock()
		if progress {
			failures = 0
			pause.Reset()
			continue
		}
		if failures++; err != nil {
			log.G(ctx).WithError(err).WithFields(log.Fields{"ref": e.sourceOf(img).ref, "tries": failures}).Warn("image is not complete yet; trying again")
		}
		if !sleep(ctx, pause.NextBackOff()) {
			return
		}
	}
}

// sleep is false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// orphans tells whether p needs objects that no stream will bring. Engine.mu is held.
func (e *Engine) orphans(p *pending) bool {
	for i, needed := range p.need {
		if needed && e.claims[p.list[i].Digest] == nil {
			if e.objects.Has(p.list[i].Digest) {
				p.got(uint32(i)) // came on demand for another image
				continue
			}
			return true
		}
	}
	return false
}

// again asks the next source for what an image lacks and reads the answer to its end.
func (e *Engine) again(ctx context.Context, img *image, failures int) error {
	proxies := e.proxiesFor(e.sourceOf(img).host)
	if n := len(proxies); n == 0 || failures >= patience*n && failures%2 == 0 {
		return e.fromRegistry(ctx, img)
	}
	p := proxies[failures%len(proxies)]
	s, err := e.reopen(ctx, img, p, failures > 0)
	if err != nil {
		return err
	}
	e.receive(ctx, s)
	e.mu.Lock()
	defer e.mu.Unlock()
	return img.failure
}

// reopen asks p for what img lacks; plain, if what came otherwise may have been wrong.
func (e *Engine) reopen(ctx context.Context, img *image, p *proxy, plain bool) (*stream, error) {
	src := e.sourceOf(img)
	req := wire.DeltaRequest{Ref: src.ref, Worker: e.worker, Platform: src.platform, Credentials: src.creds, Ticket: src.ticket}
	s := &stream{e: e, proxy: p}
	forget := false // ask as if we had nothing
	e.metrics.resumes.WithLabelValues(string(fromStream)).Inc()
	ctx, span := startSpan(ctx, "resume", src.ref, p)
	defer span.End()
	s.span = trace.SpanFromContext(ctx)
	for {
		_, err := e.header(ctx, s, req, forget, nil, func(m *delta.Metadata) error {
			if m.Manifest.Digest.String() != img.digest.String() {
				return fmt.Errorf("manifest %s instead of %s: %w", m.Manifest.Digest, img.digest, toc.ErrInvalid)
			}
			_, err := e.admit(ctx, m, s, src, e.recordOf(img).Name)
			return err
		})
		if errors.Is(err, delta.ErrRetry) {
			continue
		}
		if errors.Is(err, delta.ErrOtherTOC) && !forget {
			forget = true
			continue
		}
		if err == nil {
			s.unpin()
			img.meter.turns.Add(1)
			img.meter.add(s.header)
		}
		return s, err
	}
}

// resume goes on with an image that was incomplete when the engine was opened.
func (e *Engine) resume(ctx context.Context, img *image) {
	p, err := e.missing(img)
	if err != nil {
		log.G(ctx).WithError(err).WithField("ref", e.sourceOf(img).ref).Error("image cannot be resumed; pull it again")
		return
	}
	for i, o := range p.list {
		if !p.need[i] || ctx.Err() != nil {
			continue
		}
		if err := e.objects.Adopt(o); err != nil {
			log.G(ctx).WithError(err).WithField("object", o.Digest).Warn("what was there of a large object is fetched again")
		}
	}
	e.mu.Lock()
	img.pending = p
	e.recount(img)
	e.mu.Unlock()
	e.watch(img)
}
