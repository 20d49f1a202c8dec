package engine

import (
	"context"
	"errors"
	"time"

	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
)

var errReopened = errors.New("it lacks something again")

// recordDone records of the pulls of img how long they took in all.
func (e *Engine) recordDone(ctx context.Context, img *image, rec imageRecord) error {
	e.mu.Lock()
	refs := map[refKey]refRecord{}
	for k, r := range e.refs {
		if r.img == img && r.rec.Done == 0 {
			r.rec.Done = time.Since(r.rec.Pulled)
			r.counted = img.meter.total.Load()
			r.rec.WireBytes += r.counted
			r.rec.RoundTrips += img.meter.turns.Load() - 1
			refs[k] = r.rec
		}
	}
	e.mu.Unlock()
	for k, r := range refs {
		if err := e.state.putRef(k, r); err != nil {
			return err
		}
		e.whole(ctx, k, r, rec)
	}
	return nil
}

// finish makes what arrived durable and tells that the image is complete.
func (e *Engine) finish(ctx context.Context, img *image) error {
	if top := img.top(); top != nil {
		if err := e.ensureTree(ctx, top); err != nil { // to be durable, too
			return err
		}
	}
	if err := e.objects.Sync(); err != nil {
		return err
	}
	e.mu.Lock()
	rec := img.rec
	hooks := e.hooks
	e.mu.Unlock()
	rec.Complete = true
	if err := e.state.putImage(img.digest, rec); err != nil {
		return err
	}
	failpoint.Here("image-complete")
	if err := e.recordDone(ctx, img, rec); err != nil {
		return err
	}
	e.mu.Lock()
	if img.pending == nil || img.pending.objects > 0 { // fsck has thrown something away meanwhile
		e.mu.Unlock()
		rec.Complete = false
		return errors.Join(errReopened, e.state.putImage(img.digest, rec))
	}
	img.rec.Complete = true
	img.pending, img.watched, img.failure = nil, false, nil
	img.broadcast()
	e.mu.Unlock()
	if err := e.recordDone(ctx, img, rec); err != nil { // a pull that began meanwhile
		return err
	}
	failpoint.Here("pull-complete")
	for _, fn := range hooks {
		for _, c := range img.chains {
			if e.complete(c) {
				fn(ctx, c.id)
			}
		}
	}
	return nil
}
