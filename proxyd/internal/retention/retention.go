// Package retention bounds what the blobs of layers take: those go first that were of
// no use for longest. What is gone is ingested again when somebody asks for it.
//
// A layer is of use while a request is about it: as part of the image that is
// wanted, or as what the worker has. That is noted in the database from time to time, so
// that replicas that share it do not remove what another one sends. A removed layer is
// first remembered there, then its files are deleted: a crash in between leaves
// nothing behind.
package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	interval = time.Minute // between sweeps
	// maxUsed bounds what is remembered from one sweep to the next. Workers may name
	// what they like.
	maxUsed = 1 << 17
)

// Meta is what a Keeper needs of the database. meta.Store is one.
type Meta interface {
	Layer(ctx context.Context, diffID toc.Digest) (*meta.Layer, error)
	TouchLayers(ctx context.Context, diffIDs []toc.Digest, at time.Time) error
	LayerUses(ctx context.Context) ([]meta.LayerUse, error)
	RemoveLayer(ctx context.Context, diffID toc.Digest, since time.Time) (removed bool, err error)
	RemovedLayers(ctx context.Context) ([]meta.LayerUse, error)
	ForgetRemoved(ctx context.Context, diffID toc.Digest) error
	Lock(ctx context.Context, name string) (unlock func(), err error)
}

// Config of a Keeper.
type Config struct {
	Meta  Meta
	Blobs blob.Store
	// Bytes is how much is kept. 0: everything.
	Bytes int64
	// KeepFor is how long a layer is kept after its last use, however much there is.
	KeepFor time.Duration
	// Lock is the name under which whoever writes the files of a layer locks it.
	Lock func(diffID toc.Digest) string
	// OfImage is the key of the blob that is made of a whole image.
	OfImage func(manifest toc.Digest) string
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Gone is what was removed.
type Gone struct {
	Layers    []meta.LayerUse // their files are deleted
	Manifests []toc.Digest    // of the images that are not complete any more
}

// Keeper notes what is of use, and removes what is not. It is safe for concurrent use.
type Keeper struct {
	cfg     Config
	metrics metrics
	full    bool // more is kept than there should be, and that was said

	mu   sync.Mutex
	held map[toc.Digest]int      // guarded by mu
	used map[toc.Digest]struct{} // guarded by mu: since it was last noted
}

// New returns a Keeper. It removes nothing unless Run runs.
func New(cfg Config) *Keeper {
	return &Keeper{
		cfg: cfg, metrics: newMetrics(cfg.Metrics),
		held: map[toc.Digest]int{}, used: map[toc.Digest]struct{}{},
	}
}

// Hold notes that layers are of use until release is called, once.
func (k *Keeper) Hold(layers []toc.Digest) (release func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range layers {
		k.held[d]++
		k.use(d)
	}
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, d := range layers {
			if k.held[d]--; k.held[d] == 0 {
				delete(k.held, d)
			}
			k.use(d)
		}
	}
}

// use notes that a layer was of use. k.mu is held.
func (k *Keeper) use(d toc.Digest) {
	if len(k.used) < maxUsed {
		k.used[d] = struct{}{}
	}
}

// Run notes what is of use and removes what is too much, until ctx ends. gone is told
// what was removed, so that nobody holds it open.
func (k *Keeper) Run(ctx context.Context, gone func(Gone)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := k.sweep(ctx, gone); err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("layers that nobody uses are not removed", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Close notes what was of use.
func (k *Keeper) Close(ctx context.Context) error { return k.note(ctx) }

// note writes down what is and was of use.
func (k *Keeper) note(ctx context.Context) error {
	k.mu.Lock()
	used := k.used
	k.used = map[toc.Digest]struct{}{}
	for d := range k.held {
		used[d] = struct{}{}
	}
	k.mu.Unlock()
	if len(used) == 0 {
		return nil
	}
	layers := make([]toc.Digest, 0, len(used))
	for d := range used {
		layers = append(layers, d)
	}
	return k.cfg.Meta.TouchLayers(ctx, layers, time.Now())
}

func (k *Keeper) sweep(ctx context.Context, gone func(Gone)) error {
	if err := k.note(ctx); err != nil {
		return err
	}
	var g Gone
	var err error
	if k.cfg.Bytes > 0 {
		g.Manifests, err = k.evict(ctx)
	}
	// Also what a sweep before this one, or another replica, did not come to.
	layers, cerr := k.clear(ctx)
	g.Layers = layers
	if len(g.Layers)+len(g.Manifests) > 0 {
		gone(g)
	}
	return errors.Join(err, cerr)
}

// evict removes layers until the rest is small enough, and returns the images that are
// not complete any more.
func (k *Keeper) evict(ctx context.Context) (manifests []toc.Digest, err error) {
	uses, err := k.cfg.Meta.LayerUses(ctx)
	if err != nil {
		return nil, err
	}
	sizes, total, err := k.measure(ctx, uses)
	if err != nil {
		return nil, err
	}
	since := time.Now().Add(-k.cfg.KeepFor)
	for _, u := range uses {
		if total <= k.cfg.Bytes || !u.Used.Before(since) {
			break
		}
		removed, err := k.remove(ctx, u, since)
		if err != nil {
			return manifests, err
		}
		if !removed {
			continue
		}
		manifests = append(manifests, u.Manifests...)
		for _, key := range k.keys(u) {
			total -= sizes[key]
			delete(sizes, key) // the next layer of an image does not bring it again
		}
	}
	k.metrics.bytes.Set(float64(total))
	over := total > k.cfg.Bytes
	if over && !k.full {
		k.cfg.Log.Warn("layers in use take more than they should", "bytes", total, "limit", k.cfg.Bytes,
			"hint", "raise bytes, or lower keep_for, in [storage]")
	}
	k.full = over
	return manifests, nil
}

// keys of all blobs that go with a layer.
func (k *Keeper) keys(u meta.LayerUse) []string {
	keys := []string{u.PackKey, u.TOCKey}
	for _, m := range u.Manifests {
		keys = append(keys, k.cfg.OfImage(m))
	}
	return keys
}

// measure returns the size of each blob, and their sum.
func (k *Keeper) measure(ctx context.Context, uses []meta.LayerUse) (sizes map[string]int64, total int64, err error) {
	sizes = make(map[string]int64, 2*len(uses))
	for _, u := range uses {
		for _, key := range k.keys(u) {
			if _, ok := sizes[key]; ok {
				continue
			}
			n, err := k.cfg.Blobs.Stat(ctx, key)
			if err != nil && !errors.Is(err, blob.ErrNotExist) {
				return nil, 0, err
			}
			sizes[key] = n
			total += n
		}
	}
	return sizes, total, nil
}

// remove takes a layer out of the database, if it is still of no use, and deletes what
// was made of its images.
func (k *Keeper) remove(ctx context.Context, u meta.LayerUse, since time.Time) (bool, error) {
	removed, err := k.cfg.Meta.RemoveLayer(ctx, u.DiffID, since)
	if err != nil || !removed {
		return false, err
	}
	k.cfg.Log.Debug("layer is removed", "layer", u.DiffID, "used", u.Used)
	for _, m := range u.Manifests {
		if err := k.delete(ctx, k.cfg.OfImage(m)); err != nil {
			return true, err
		}
	}
	return true, nil
}

// clear deletes the files of removed layers.
func (k *Keeper) clear(ctx context.Context) (cleared []meta.LayerUse, err error) {
	layers, err := k.cfg.Meta.RemovedLayers(ctx)
	if err != nil {
		return nil, err
	}
	for _, u := range layers {
		done, err := k.clearLayer(ctx, u)
		if err != nil {
			return cleared, fmt.Errorf("layer %s: %w", u.DiffID, err)
		}
		if done {
			k.metrics.removed.Inc()
			cleared = append(cleared, u)
		}
	}
	return cleared, nil
}

// clearLayer deletes the files of a layer unless it was ingested again meanwhile.
func (k *Keeper) clearLayer(ctx context.Context, u meta.LayerUse) (bool, error) {
	unlock, err := k.cfg.Meta.Lock(ctx, k.cfg.Lock(u.DiffID))
	if err != nil {
		return false, err
	}
	defer unlock()
	if _, err := k.cfg.Meta.Layer(ctx, u.DiffID); !errors.Is(err, meta.ErrNotFound) {
		return false, err
	}
	for _, key := range []string{u.TOCKey, u.PackKey} {
		if err := k.delete(ctx, key); err != nil {
			return false, err
		}
	}
	return true, k.cfg.Meta.ForgetRemoved(ctx, u.DiffID)
}

func (k *Keeper) delete(ctx context.Context, key string) error {
	if err := k.cfg.Blobs.Delete(ctx, key); err != nil && !errors.Is(err, blob.ErrNotExist) {
		return err
	}
	return nil
}

type metrics struct {
	removed prometheus.Counter
	bytes   prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		removed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "proxyd_layers_removed_total", Help: "Layers that made room for others.",
		}),
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "proxyd_layer_bytes", Help: "Bytes of the layers that are kept, and of what is made of them, if they are bounded.",
		}),
	}
	r.MustRegister(m.removed, m.bytes)
	return m
}
