package server

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
)

// cache keeps what was used last, bounded by its cost in bytes, and loads what
// is not there once for all who ask at the same time.
type cache[K comparable, V any] struct {
	max   int64
	evict func(V) // may be nil; called without lock

	mu      sync.Mutex
	lru     *simplelru.LRU[K, costed[V]] // guarded by mu
	cost    int64                        // guarded by mu: of lru
	flights map[K]*flight[V]             // guarded by mu
	wg      sync.WaitGroup               // of flights
}

type costed[V any] struct {
	v    V
	cost int64
}

// flight is a load under way. v and err are set before done is closed.
type flight[V any] struct {
	done chan struct{}
	v    V
	err  error
}

func newCache[K comparable, V any](limit int64, evict func(V)) *cache[K, V] {
	const entries = 1 << 20 // the cost is the limit that matters
	lru, err := simplelru.NewLRU[K, costed[V]](entries, nil)
	if err != nil {
		panic(err) // the size is a constant
	}
	return &cache[K, V]{max: limit, evict: evict, lru: lru, flights: make(map[K]*flight[V])}
}

// get returns the value of key. load runs apart from ctx, because others may wait
// for it too, but not longer than timeout.
func (c *cache[K, V]) get(ctx context.Context, key K, timeout time.Duration, load func(context.Context) (V, int64, error)) (V, error) {
	c.mu.Lock()
	if e, ok := c.lru.Get(key); ok {
		c.mu.Unlock()
		return e.v, nil
	}
	f := c.flights[key]
	if f == nil {
		f = &flight[V]{done: make(chan struct{})}
		c.flights[key] = f
		c.wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
			defer cancel()
			c.fly(ctx, key, f, load)
		})
	}
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.v, f.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

func (c *cache[K, V]) fly(ctx context.Context, key K, f *flight[V], load func(context.Context) (V, int64, error)) {
	var cost int64
	f.err = background.Guard(func() (err error) {
		f.v, cost, err = load(ctx)
		return err
	})()
	var out []V
	c.mu.Lock()
	delete(c.flights, key)
	if f.err == nil {
		c.lru.Add(key, costed[V]{f.v, cost})
		c.cost += cost
		out = c.shrink(1)
	}
	c.mu.Unlock()
	close(f.done)
	c.drop(out)
}

// shrink removes the oldest until the cost is within the limit or keep are left.
// c.mu is held.
func (c *cache[K, V]) shrink(keep int) (out []V) {
	for c.lru.Len() > keep && (c.cost > c.max || keep == 0) {
		_, e, _ := c.lru.RemoveOldest()
		c.cost -= e.cost
		out = append(out, e.v)
	}
	return out
}

// forget removes those for which match is true. What is being loaded stays.
func (c *cache[K, V]) forget(match func(V) bool) {
	var out []V
	c.mu.Lock()
	for _, k := range c.lru.Keys() {
		if e, ok := c.lru.Peek(k); ok && match(e.v) {
			c.lru.Remove(k)
			c.cost -= e.cost
			out = append(out, e.v)
		}
	}
	c.mu.Unlock()
	c.drop(out)
}

// remove removes some keys. What is being loaded stays.
func (c *cache[K, V]) remove(keys ...K) {
	var out []V
	c.mu.Lock()
	for _, k := range keys {
		if e, ok := c.lru.Peek(k); ok {
			c.lru.Remove(k)
			c.cost -= e.cost
			out = append(out, e.v)
		}
	}
	c.mu.Unlock()
	c.drop(out)
}

func (c *cache[K, V]) drop(values []V) {
	if c.evict != nil {
		for _, v := range values {
			c.evict(v)
		}
	}
}

// close waits for loads and empties the cache.
func (c *cache[K, V]) close() {
	c.wg.Wait()
	c.mu.Lock()
	out := c.shrink(0)
	c.mu.Unlock()
	c.drop(out)
}
