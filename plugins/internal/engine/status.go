package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Modes of an image.
const (
	ModeDelta = "delta"
	ModePlain = "plain"
)

// ImageStatus is the state of one pulled image.
type ImageStatus struct {
	Namespace, Ref string
	Target         digest.Digest
	Mode           string // ModeDelta or ModePlain
	Reason         string // of ModePlain, or of the last failure of a stream
	Proxy          string // address of the proxyd that served it
	WireBytes      int64  // received for this image, headers included
	Objects        int64  // of the tree
	ObjectsLocal   int64
	Bytes          int64 // of the tree's objects
	BytesLocal     int64
	Rate           float64 // bytes a second on the wire, now; 0 when complete
	RoundTrips     int64   // requests made for it
	Complete       bool
	Vouched        bool // the manifest names the TOCs of all layers
	Pulled         time.Time
	Ready, Done    time.Duration // from the start of the pull to its metadata / its last object
}

// Status lists all images, or those with the given ref if it is not "".
func (e *Engine) Status(name string) []ImageStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []ImageStatus
	for k, r := range e.refs {
		if name == "" || k.ref == name {
			out = append(out, r.status(k))
		}
	}
	slices.SortFunc(out, func(a, b ImageStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Ref, b.Ref))
	})
	return out
}

func (r *ref) status(k refKey) ImageStatus {
	s := ImageStatus{
		Namespace: k.namespace, Ref: k.ref, Target: r.rec.Target, Mode: ModePlain, Reason: r.rec.Reason,
		Proxy: r.rec.Proxy, WireBytes: r.rec.WireBytes, RoundTrips: r.rec.RoundTrips,
		Pulled: r.rec.Pulled, Ready: r.rec.Ready, Done: r.rec.Done, Complete: true,
	}
	img := r.img
	if img == nil {
		return s
	}
	s.Mode, s.Objects, s.Bytes, s.Complete = ModeDelta, img.rec.Objects, img.rec.Bytes, img.rec.Complete
	s.ObjectsLocal, s.BytesLocal = s.Objects, s.Bytes
	s.Vouched = img.rec.named()
	if img.failure != nil && !s.Complete {
		s.Reason = img.failure.Error()
	}
	if !s.Complete {
		s.Rate = img.meter.perSecond()
		if p := img.pending; p != nil {
			s.ObjectsLocal, s.BytesLocal = s.Objects-p.objects, s.Bytes-p.bytes
		}
	}
	if r.rec.Done == 0 || r.counted > 0 {
		// What was asked for on demand may still come when the image is whole.
		s.WireBytes += img.meter.total.Load() - r.counted
	}
	if r.rec.Done == 0 {
		s.RoundTrips += max(img.meter.turns.Load()-1, 0)
	}
	return s
}

// reportInterval is how often Wait reports.
const reportInterval = 100 * time.Millisecond

// Wait calls report (about ten times a second and at the end) until every image
// with ref is complete. Unknown refs give errdefs.ErrNotFound.
func (e *Engine) Wait(ctx context.Context, name string, report func(ImageStatus) error) error {
	tick := time.NewTicker(reportInterval)
	defer tick.Stop()
	for {
		all := e.Status(name)
		if len(all) == 0 {
			return fmt.Errorf("image %q was not pulled here: %w", name, errdefs.ErrNotFound)
		}
		complete := true
		for _, s := range all {
			complete = complete && s.Complete
			if err := report(s); err != nil {
				return err
			}
		}
		if complete {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
