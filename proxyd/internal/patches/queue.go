package patches

import (
	"context"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/wire/patch"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// job asks for a patch.
type job struct{ from, to delta.Source }

func (j *job) pair() pair { return pair{j.from.Digest, j.to.Digest} }

// move is a tag that leads to another manifest than before.
type move struct {
	repo     string
	from, to toc.Digest
}

// task is one of both.
type task struct {
	job  *job
	move *move
}

// enqueue has a task done some time. It does not block, and forgets the task if too
// many wait already.
func (c *Cache) enqueue(t task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.tasks) >= maxQueue {
		c.metrics.made.WithLabelValues(resultDropped).Inc()
		return
	}
	if t.job != nil {
		p := t.job.pair()
		if c.queued[p] {
			return
		}
		c.queued[p] = true
	}
	c.tasks = append(c.tasks, t)
	c.signal()
}

// signal tells a worker that there is a task. c.mu is held.
func (c *Cache) signal() {
	c.metrics.queued.Set(float64(len(c.tasks) + c.busy))
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// next waits for a task; ok is false when ctx ends.
func (c *Cache) next(ctx context.Context) (t task, ok bool) {
	for {
		c.mu.Lock()
		if len(c.tasks) > 0 {
			t, c.tasks = c.tasks[0], c.tasks[1:]
			c.busy++
			c.signal() // the next worker
			c.mu.Unlock()
			return t, true
		}
		c.mu.Unlock()
		select {
		case <-c.wake:
		case <-ctx.Done():
			return task{}, false
		}
	}
}

// work does one task after the other on a thread of low priority: who waits for a
// stream goes first.
func (c *Cache) work(ctx context.Context) {
	if err := background.Lower(); err != nil {
		c.cfg.Log.Warn("patches are made at normal priority", "error", err)
	}
	for {
		t, ok := c.next(ctx)
		if !ok || ctx.Err() != nil {
			return
		}
		if err := background.Guard(func() error { return c.do(ctx, t) })(); err != nil && ctx.Err() == nil {
			c.metrics.made.WithLabelValues(resultFailed).Inc()
			c.cfg.Log.Warn("patch cannot be made", "error", err)
		}
		c.mu.Lock()
		c.busy--
		c.metrics.queued.Set(float64(len(c.tasks) + c.busy))
		if t.job != nil {
			delete(c.queued, t.job.pair())
		}
		c.mu.Unlock()
	}
}

// do does one task.
func (c *Cache) do(ctx context.Context, t task) error {
	if t.move != nil {
		return c.expand(ctx, *t.move)
	}
	return c.make(ctx, *t.job)
}

// options are those for nobody waiting: whatever makes it smaller, as far as
// memory allows.
func options(size, memory int64) patch.Options {
	o := patch.Options{Method: patch.RD, Step: 4, Lazy: 24, Memory: memory}
	if size <= patch.AutoRD {
		o.Passes = 3
	}
	return o
}
