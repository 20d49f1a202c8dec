package registry

import (
	"maps"
	"sync"
	"time"
)

// expiring is a small cache that forgets by itself: what it holds may be worth
// protecting. With a negative ttl it holds nothing.
type expiring[K comparable, V any] struct {
	ttl time.Duration

	mu sync.Mutex // guards: m
	m  map[K]*expiringEntry[V]
}

type expiringEntry[V any] struct{ value V }

func (e *expiring[K, V]) get(key K) (v V, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if en := e.m[key]; en != nil {
		return en.value, true
	}
	return v, false
}

func (e *expiring[K, V]) put(key K, v V) {
	if e.ttl < 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.m == nil {
		e.m = make(map[K]*expiringEntry[V])
	}
	if len(e.m) >= maxCached {
		return
	}
	en := &expiringEntry[V]{v}
	e.m[key] = en
	time.AfterFunc(e.ttl, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.m[key] == en {
			delete(e.m, key)
		}
	})
}

// forget removes what matches.
func (e *expiring[K, V]) forget(match func(K) bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.m, func(k K, _ *expiringEntry[V]) bool { return match(k) })
}
