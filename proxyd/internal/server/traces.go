package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/internal/trace"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// orderTrace is the kind of order that reports give.
const orderTrace = "trace"

const (
	// maxReports are looked at at the same time.
	maxReports = 2
	// maxProfiles of a repository are kept: its tags may be of several kinds.
	maxProfiles = 16
	// alike is the share of the files of a profile that an image must have for it
	// to be a successor.
	alike = 0.5
)

// traceLimits: more starts than these would not change a median, and no worker
// shall be most of them.
var traceLimits = meta.TraceLimits{PerReporter: 8, Total: 64}

// traces takes a wire.TraceRequest.
func (s *Server) traces(w *response, r *http.Request, rec *record) error {
	var req wire.TraceRequest
	if err := s.decode(w, r, &req); err != nil {
		return err
	}
	rec.ref, rec.platform = req.Ref, req.Platform
	platform, err := parsePlatform(req.Platform)
	if err != nil {
		return err
	}
	release, ok := s.reports.take()
	if !ok {
		return busy("too many reports at once")
	}
	defer release()
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Limits.Plan)
	defer cancel()
	// Whoever the registry gives the image to may say how it starts.
	img, err := s.image(ctx, req.Ref, platform, req.Credentials, req.Ticket)
	if err != nil {
		return err
	}
	rec.digest = img.Manifest.Digest
	layers, err := s.cfg.Ingester.Ready(ctx, img)
	if err != nil {
		return err
	}
	if layers == nil {
		return busy("the image is not ingested; pull it first")
	}
	im, err := s.library.image(ctx, img, layers)
	if err != nil {
		return err
	}
	if err := s.library.learn(ctx, img, im, reporter(r), req.Traces); err != nil {
		return err
	}
	s.cfg.Metrics.traces.Add(float64(len(req.Traces)))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	return json.NewEncoder(w).Encode(wire.TraceResponse{Accepted: len(req.Traces)})
}

// reporter names a client without telling who it is.
func reporter(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	sum := sha256.Sum256([]byte("reporter " + host))
	return hex.EncodeToString(sum[:8])
}

// learn stores traces and makes new orders of all that are stored.
func (l *library) learn(ctx context.Context, img *registry.Image, im *image, reporter string, reported []wire.Trace) error {
	now := time.Now()
	stored := make([]meta.Trace, len(reported))
	for i := range reported {
		t := trace.FromWire(&reported[i])
		for _, it := range t.Items {
			if int64(it.Object) >= int64(len(im.delta.Objects)) {
				return invalid(fmt.Sprintf("the image has %d objects, a trace names number %d", len(im.delta.Objects), it.Object))
			}
		}
		stored[i] = meta.Trace{ID: reported[i].ID, Reporter: reporter, Received: now.Add(time.Duration(i) * time.Microsecond), Bytes: t.Encode()}
	}
	unlock, err := l.cfg.Meta.Lock(ctx, "traces "+im.manifest.String())
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.cfg.Meta.PutTraces(ctx, im.manifest, stored, traceLimits); err != nil {
		return err
	}
	return l.relearn(ctx, img.Name, im)
}

// relearn makes the order and the profile of an image from its traces.
func (l *library) relearn(ctx context.Context, repo string, im *image) error {
	stored, err := l.cfg.Meta.Traces(ctx, im.manifest)
	if err != nil {
		return err
	}
	traces := make([]*trace.Trace, 0, len(stored))
	for i := range stored {
		t, err := trace.Decode(stored[i].Bytes)
		if err != nil {
			continue // of another version of proxyd
		}
		traces = append(traces, t)
	}
	pieces := piecesOf(im.delta)
	learned := trace.Aggregate(traces, pieces)
	order := orderOf(learned)
	if learned.Full == 0 {
		order.Hot = 0
	}
	if err := l.cfg.Meta.PutOrder(ctx, im.manifest, orderTrace, encodeOrder(order)); err != nil {
		return err
	}
	paths, err := l.paths(ctx, im)
	if err != nil {
		return err
	}
	profile, err := trace.NewProfile(learned, pieces, paths).Encode()
	if err != nil {
		return fmt.Errorf("profile of %s: %w", im.manifest, err)
	}
	err = l.cfg.Meta.PutProfile(ctx, repo, &meta.Profile{Manifest: im.manifest, Updated: time.Now(), Bytes: profile}, maxProfiles)
	if err != nil {
		return err
	}
	// Its successors inherit anew. Other replicas go on with what they have.
	l.images.forget(func(other *image) bool { return other.repo == repo && other.manifest != im.manifest })
	return nil
}

// current is the order of sending by now: what traces of the image say, then what
// is inherited and predicted.
func (l *library) current(ctx context.Context, im *image) (delta.Order, error) {
	stored, err := l.cfg.Meta.Order(ctx, im.manifest, orderTrace)
	if errors.Is(err, meta.ErrNotFound) {
		return im.order, nil
	}
	if err != nil {
		return delta.Order{}, fmt.Errorf("order of sending: %w", err)
	}
	learned, ok := decodeOrder(stored, im.delta.Objects)
	if !ok {
		return im.order, nil
	}
	return before(learned, im.order), nil
}

// before puts what was seen before what is guessed. If nothing says that all has
// been seen, what is guessed is hot as well.
func before(seen, guessed delta.Order) delta.Order {
	o := delta.Order{
		Hot: seen.Hot, Items: make([]delta.Item, 0, len(seen.Items)+len(guessed.Items)), Group: seen.Group, Times: seen.Times,
	}
	o.Items = append(append(o.Items, seen.Items...), guessed.Items...)
	if o.Hot == 0 {
		o.Hot = len(seen.Items) + guessed.Hot
	}
	return o
}

// inherit puts before the predicted order of an image that of the most similar one
// of its repository that was traced.
func (l *library) inherit(ctx context.Context, repo string, im *image, tree *toc.Tree) (delta.Order, error) {
	profiles, err := l.cfg.Meta.Profiles(ctx, repo)
	if err != nil {
		return delta.Order{}, err
	}
	if len(profiles) == 0 {
		return im.order, nil
	}
	files := trace.NewFiles()
	err = tree.Walk(func(path string, n *toc.Node) error {
		if id, ok := object(im.delta, n); ok {
			files.Add(path, trace.File{Object: id, Pieces: uint32(im.delta.Objects[id].NumPieces())})
		}
		return ctx.Err()
	})
	if err != nil {
		return delta.Order{}, err
	}
	var best delta.Order
	least := alike
	for _, stored := range profiles { // the newest first, and of equal ones it stays
		p, err := trace.DecodeProfile(stored.Bytes)
		if err != nil || len(p.Entries) == 0 || stored.Manifest == im.manifest {
			continue
		}
		order, found := p.Apply(files)
		if share := float64(found) / float64(len(p.Entries)); share > least {
			if least, best = share, orderOf(order); !p.Full {
				best.Hot = 0
			}
		}
	}
	if len(best.Items) == 0 {
		return im.order, nil
	}
	return before(best, im.order), nil
}

// paths is the path of each object of the image's tree, or "".
func (l *library) paths(ctx context.Context, im *image) ([]string, error) {
	select {
	case l.building <- struct{}{}:
		defer func() { <-l.building }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	tocs := make([]*toc.TOC, len(im.layers))
	for i, m := range im.layers {
		var err error
		if _, tocs[i], err = l.decode(ctx, m); err != nil {
			return nil, err
		}
	}
	tree, err := toc.Merge(tocs...)
	if err != nil {
		return nil, fmt.Errorf("merge the layers: %w", err)
	}
	paths := make([]string, len(im.delta.Objects))
	err = tree.Walk(func(path string, n *toc.Node) error {
		if id, ok := object(im.delta, n); ok && paths[id] == "" {
			paths[id] = path
		}
		return ctx.Err()
	})
	return paths, err
}

// object is the index of the object of a node, if it has one.
func object(img *delta.Image, n *toc.Node) (uint32, bool) {
	if n.Type != toc.TypeReg || n.Size == 0 {
		return 0, false
	}
	return img.Index(n.Object)
}

func piecesOf(img *delta.Image) []uint32 {
	pieces := make([]uint32, len(img.Objects))
	for i := range img.Objects {
		pieces[i] = uint32(img.Objects[i].NumPieces())
	}
	return pieces
}

func orderOf(o trace.Order) delta.Order {
	out := delta.Order{Items: make([]delta.Item, len(o.Items)), Hot: o.Hot, Group: o.Group, Times: o.Times}
	for i, it := range o.Items {
		out.Items[i] = delta.Item(it)
	}
	return out
}
