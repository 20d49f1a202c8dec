package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/starlight-delta/starlight/plugins/internal/trace"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// maxReport is how many items go into one report.
const maxReport = 4 * wire.MaxTraced

// Traces lists the traces that are not reported yet, the oldest first.
func (e *Engine) Traces() ([]*trace.Trace, error) { return e.tracer.store.All() }

// DropTraces removes traces.
func (e *Engine) DropTraces(ids ...string) error { return e.tracer.store.Delete(ids...) }

// Report sends all traces to the proxies of their registries, and removes those that
// were accepted. It returns how many.
func (e *Engine) Report(ctx context.Context) (int, error) {
	e.tracer.reporting.Lock()
	defer e.tracer.reporting.Unlock()
	all, err := e.tracer.store.All()
	if err != nil {
		return 0, err
	}
	by := map[toc.Digest][]*trace.Trace{}
	var images []toc.Digest
	for _, t := range all {
		if by[t.Image] == nil {
			images = append(images, t.Image)
		}
		by[t.Image] = append(by[t.Image], t)
	}
	var errs []error
	done := 0
	for _, d := range images {
		for batch := range batches(by[d]) {
			n, err := e.report(ctx, batch)
			done += n
			if err != nil {
				errs = append(errs, fmt.Errorf("traces of %s@%s: %w", batch[0].Name, d, err))
				break
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return done, errors.Join(errs...)
}

// batches cuts traces into reports that are not too large.
func batches(all []*trace.Trace) func(yield func([]*trace.Trace) bool) {
	return func(yield func([]*trace.Trace) bool) {
		for len(all) > 0 {
			n, items := 0, 0
			for n < len(all) && n < wire.MaxTraces && (n == 0 || items+len(all[n].Objects) <= maxReport) {
				items += len(all[n].Objects)
				n++
			}
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}

// report sends traces of one image.
func (e *Engine) report(ctx context.Context, traces []*trace.Trace) (int, error) {
	first := traces[0]
	host := hostOf(first.Name)
	req := wire.TraceRequest{
		Ref: first.Name + "@" + first.Image.String(), Platform: first.Platform,
	}
	req.Credentials, req.Ticket = e.credentialsFor(first)
	var ids []string
	for _, t := range traces {
		ids = append(ids, t.ID)
		if w := onWire(t); len(w.Items) > 0 {
			req.Traces = append(req.Traces, w)
		}
	}
	if len(req.Traces) == 0 { // nothing was read
		return 0, e.tracer.store.Delete(ids...)
	}
	err := fmt.Errorf("no proxy is configured for registry %q: %w", host, errdefs.ErrUnavailable)
	for _, p := range e.proxiesFor(host) {
		if _, err = p.client.Traces(ctx, req); err == nil {
			return len(req.Traces), e.tracer.store.Delete(ids...)
		}
	}
	return 0, err
}

// credentialsFor are those of the last pull of the image, or of its repository, and
// the ticket of the image.
func (e *Engine) credentialsFor(t *trace.Trace) (creds *wire.Credentials, ticket string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if img := e.images[t.Image]; img != nil {
		creds, ticket = img.source.creds, img.source.ticket
	}
	for _, img := range e.images {
		if creds == nil && ticket == "" && img.rec.Name == t.Name {
			creds = img.source.creds
		}
	}
	return creds, ticket
}

// onWire is a trace as it is reported: large objects by pieces, in the order of the
// first read, and without what was opened only.
func onWire(t *trace.Trace) wire.Trace {
	w := wire.Trace{ID: t.ID, Group: t.Group, Partial: t.Partial}
	at := func(after time.Duration) uint32 {
		return uint32(min((t.Delay + after).Milliseconds(), wire.MaxTraceTime))
	}
	for i := range t.Objects {
		o := &t.Objects[i]
		if o.Size <= toc.PieceSize {
			if len(o.Ranges) > 0 {
				w.Items = append(w.Items, wire.TraceItem{Object: o.Index, Time: at(o.After)})
			}
			continue
		}
		for _, r := range o.Ranges {
			from, to := r.Off/toc.PieceSize, (r.Off+r.N-1)/toc.PieceSize
			w.Items = append(w.Items, wire.TraceItem{
				Object: o.Index, First: uint32(from), Pieces: uint32(to - from + 1), Time: at(r.After),
			})
		}
	}
	w.Items = w.Items[:min(len(w.Items), wire.MaxTraced)]
	slices.SortStableFunc(w.Items, func(a, b wire.TraceItem) int { return cmp.Compare(a.Time, b.Time) })
	return w
}

// reportTraces reports by itself, where that is wanted.
func (e *Engine) reportTraces(ctx context.Context) {
	remind := time.NewTicker(remindReports)
	defer remind.Stop()
	for {
		select {
		case <-e.tracer.kick:
		case <-remind.C:
		case <-ctx.Done():
			return
		}
		if !e.cfg.ReportTraces && !e.Optimizer().Report {
			continue
		}
		n, err := e.Report(ctx)
		if err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).Info("traces are kept, because no proxy took them")
		}
		if n > 0 {
			log.G(ctx).WithField("traces", n).Info("traces were reported")
		}
	}
}

// TracedBy tells whether a trace is of an image by this name: its repository, or a
// reference that was pulled.
func (e *Engine) TracedBy(t *trace.Trace, name string) bool {
	if name == t.Name || name == t.Name+"@"+t.Image.String() {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, r := range e.refs {
		if k.ref == name && r.rec.Manifest == t.Image {
			return true
		}
	}
	return false
}

// TracePaths names the objects of a trace by paths in its image, as far as that is
// still there.
func (e *Engine) TracePaths(t *trace.Trace) map[toc.Digest]string {
	paths := make(map[toc.Digest]string, len(t.Objects))
	e.mu.Lock()
	img := e.images[t.Image]
	e.mu.Unlock()
	if img == nil {
		return paths
	}
	tree, err := e.mergeTOCs(e.layersOf(img))
	if err != nil {
		return paths
	}
	for i := range t.Objects {
		paths[t.Objects[i].Digest] = ""
	}
	_ = tree.Walk(func(path string, n *toc.Node) error { // of fn, which gives none
		if n.Type == toc.TypeReg && n.Size > 0 {
			if known, ok := paths[n.Object]; ok && known == "" {
				paths[n.Object] = "/" + path
			}
		}
		return nil
	})
	return paths
}
