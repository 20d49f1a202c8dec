package engine

import (
	"context"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// waited notes that a reader had to wait for an object that is on its way, unless a
// trace of the image sees that anyway.
func (e *Engine) waited(d toc.Digest, off, n int64, began time.Time) {
	wait := time.Since(began)
	if wait < grace || e.tracer == nil {
		return
	}
	e.mu.Lock()
	var tr *recording
	for _, i := range e.images {
		if p := i.pending; p != nil {
			if _, ok := p.index[d]; ok {
				tr = record(i, p)
				break
			}
		}
	}
	e.mu.Unlock()
	if tr == nil {
		return
	}
	t := e.tracer
	t.mu.Lock()
	for _, full := range t.running {
		if full.of == tr.of {
			t.mu.Unlock()
			return
		}
	}
	if known := t.waits[tr.of.digest]; known != nil {
		tr = known
	} else {
		t.waits[tr.of.digest] = tr
	}
	t.mu.Unlock()
	tr.rec.Add(d, off, n, began, wait)
}

// endWaits stores what readers waited for when an image is complete.
func (e *Engine) endWaits(ctx context.Context, chain digest.Digest) {
	t := e.tracer
	t.mu.Lock()
	var over []*recording
	for d, tr := range t.waits {
		if tr.chain == chain {
			over = append(over, tr)
			delete(t.waits, d)
		}
	}
	t.mu.Unlock()
	for _, tr := range over {
		if err := e.keep(tr); err != nil {
			log.G(ctx).WithError(err).Warn("a trace is lost")
		}
	}
}
