package patches

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// MinSize is the size of objects from which on they get a patch of their own.
	MinSize = 32 << 10

	maxQueue  = 16 << 10 // tasks
	version   = "2"      // of the format; keys of other versions are not looked at
	keyPrefix = "patch/" + version + "/"
)

// Meta is what a Cache needs of the database. meta.Store is one.
type Meta interface {
	Patch(ctx context.Context, from, to toc.Digest) (*meta.Patch, error)
	PutPatch(ctx context.Context, p *meta.Patch) error
	DeletePatch(ctx context.Context, from, to toc.Digest) error
	PatchBytes(ctx context.Context) (int64, error)
	StalePatches(ctx context.Context, n int) ([]meta.Patch, error)

	Resolved(ctx context.Context, repo, tag, platform string) (toc.Digest, error)
	PutResolved(ctx context.Context, r meta.Resolved) error
	Image(ctx context.Context, repo string, manifest toc.Digest) (*meta.Image, error)
	Layer(ctx context.Context, diffID toc.Digest) (*meta.Layer, error)
}

// TOCs gives the encoded TOC of a layer. *ingest.Ingester does.
type TOCs interface {
	TOC(ctx context.Context, l *meta.Layer) ([]byte, error)
}

// Config of a Cache.
type Config struct {
	Meta  Meta
	TOCs  TOCs
	Blobs blob.Store
	// Bytes is how much is kept. 0: nothing is made or kept.
	Bytes int64
	// Parallel is how many patches are made at a time, each with Memory bytes.
	Parallel int
	Memory   int64
	Log      *slog.Logger
	Metrics  prometheus.Registerer
}

// Cache makes and keeps patches. It must be closed.
type Cache struct {
	cfg     Config
	metrics metrics
	cancel  context.CancelFunc
	workers *errgroup.Group
	wake    chan struct{} // has room for one: there may be a task

	mu     sync.Mutex // guards the rest
	tasks  []task
	busy   int // tasks that are being done
	queued map[pair]bool
	used   map[pair]*meta.Patch // since the last sweep
}

type pair struct{ from, to toc.Digest }

// New returns a Cache, which works until Close.
func New(cfg Config) *Cache {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Cache{
		cfg: cfg, metrics: newMetrics(cfg.Metrics), cancel: cancel, workers: new(errgroup.Group),
		wake: make(chan struct{}, 1), queued: map[pair]bool{}, used: map[pair]*meta.Patch{},
	}
	if cfg.Bytes > 0 {
		for range max(1, cfg.Parallel) {
			c.workers.Go(func() error {
				c.work(ctx)
				return nil
			})
		}
	}
	return c
}

// Close ends what is being made.
func (c *Cache) Close() error {
	c.cancel()
	err := c.workers.Wait()
	return errors.Join(err, c.note(context.Background()))
}

// Patch implements delta.Patches. What is not there is made for the next worker.
func (c *Cache) Patch(ctx context.Context, from, to delta.Source) (delta.Patch, error) {
	if c.cfg.Bytes <= 0 || from.Size < MinSize || to.Size < MinSize {
		return nil, nil
	}
	p, known, err := c.get(ctx, from.Digest, to.Digest)
	if err != nil || p != nil {
		return p, err
	}
	if !known {
		c.enqueue(task{job: &job{from, to}})
	}
	return nil, nil
}

// get returns the patch between two objects, if there is one; known tells whether it
// was tried to make it.
func (c *Cache) get(ctx context.Context, from, to toc.Digest) (p delta.Patch, known bool, err error) {
	rec, err := c.cfg.Meta.Patch(ctx, from, to)
	switch {
	case errors.Is(err, meta.ErrNotFound):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	case rec.Key != key(from, to):
		return nil, rec.Key == "", nil
	}
	s, err := open(ctx, c.cfg.Blobs, rec.Key)
	if errors.Is(err, ErrDamaged) || errors.Is(err, blob.ErrNotExist) {
		c.cfg.Log.Warn("stored patch is thrown away", "from", from, "to", to, "error", err)
		return nil, false, c.remove(ctx, rec)
	}
	if err != nil {
		return nil, false, err
	}
	rec.Used = time.Now()
	c.mu.Lock()
	c.used[pair{from, to}] = rec
	c.mu.Unlock()
	c.metrics.hits.Inc()
	return s, true, nil
}

func key(from, to toc.Digest) string {
	return keyPrefix + to.Hex()[:2] + "/" + from.Hex() + "-" + to.Hex()
}

func (c *Cache) remove(ctx context.Context, rec *meta.Patch) error {
	if rec.Key != "" {
		if err := c.cfg.Blobs.Delete(ctx, rec.Key); err != nil && !errors.Is(err, blob.ErrNotExist) {
			return err
		}
	}
	return c.cfg.Meta.DeletePatch(ctx, rec.Old, rec.New)
}

// note writes down what was used.
func (c *Cache) note(ctx context.Context) error {
	c.mu.Lock()
	used := c.used
	c.used = map[pair]*meta.Patch{}
	c.mu.Unlock()
	for _, p := range used {
		if err := c.cfg.Meta.PutPatch(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// sweep makes room: what was not used for longest goes.
func (c *Cache) sweep(ctx context.Context) error {
	if err := c.note(ctx); err != nil {
		return err
	}
	size, err := c.cfg.Meta.PatchBytes(ctx)
	for err == nil && size > c.cfg.Bytes {
		var stale []meta.Patch
		const batch = 64
		if stale, err = c.cfg.Meta.StalePatches(ctx, batch); err != nil || len(stale) == 0 {
			break
		}
		for i := range stale {
			if size <= c.cfg.Bytes {
				break
			}
			if err := c.remove(ctx, &stale[i]); err != nil {
				return err
			}
			size -= stale[i].Size
			c.metrics.evicted.Inc()
		}
	}
	c.metrics.bytes.Set(float64(size))
	return err
}

// locate finds the pack of an object.
func (c *Cache) locate(ctx context.Context, s delta.Source) (object, error) {
	l, err := c.cfg.Meta.Layer(ctx, s.Layer)
	if err != nil {
		return object{}, err
	}
	return object{digest: s.Digest, size: s.Size, pack: l.PackKey, number: s.Number}, nil
}

// make makes and keeps the patch of a job.
func (c *Cache) make(ctx context.Context, j job) error {
	old, nw := j.from.Digest, j.to.Digest
	rec, err := c.cfg.Meta.Patch(ctx, old, nw)
	if err == nil && (rec.Key == "" || rec.Key == key(old, nw)) {
		return nil
	}
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return err
	}
	from, err := c.locate(ctx, j.from)
	if err != nil {
		return err
	}
	to, err := c.locate(ctx, j.to)
	if err != nil {
		return err
	}
	began := time.Now()
	rec = &meta.Patch{Old: old, New: nw, Key: key(old, nw)}
	w, err := c.cfg.Blobs.Create(ctx, rec.Key)
	if err != nil {
		return err
	}
	rec.Size, err = write(ctx, w, c.cfg.Blobs, from, to, options(to.size, c.cfg.Memory))
	switch {
	case errors.Is(err, errDear):
		rec.Key, rec.Size = "", 0
		err = w.Abort()
	case err != nil:
		err = errors.Join(err, w.Abort())
	default:
		err = w.Commit()
	}
	if err != nil {
		return fmt.Errorf("patch from %s to %s: %w", old, nw, err)
	}
	rec.Used = time.Now()
	if err := c.cfg.Meta.PutPatch(ctx, rec); err != nil {
		return err
	}
	if err := c.sweep(ctx); err != nil {
		return err
	}
	c.metrics.duration.Observe(time.Since(began).Seconds())
	result := resultMade
	if rec.Key == "" {
		result = resultDear
	}
	c.metrics.made.WithLabelValues(result).Inc()
	c.cfg.Log.Debug("patch", "from", old, "to", nw, "bytes", rec.Size, "of", to.size, "result", result)
	return nil
}
