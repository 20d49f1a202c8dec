package sqlstore

import (
	"context"
	"sync"
)

// keyLock is a set of mutexes by name whose waiters heed their context. The
// zero value is ready.
type keyLock struct {
	mu sync.Mutex // guards: m, and waiters of its entries
	m  map[string]*keyEntry
}

type keyEntry struct {
	held    chan struct{} // holds one element while the name is locked
	waiters int           // holder included
}

func (k *keyLock) lock(ctx context.Context, name string) (unlock func(), err error) {
	k.mu.Lock()
	e := k.m[name]
	if e == nil {
		if k.m == nil {
			k.m = make(map[string]*keyEntry)
		}
		e = &keyEntry{held: make(chan struct{}, 1)}
		k.m[name] = e
	}
	e.waiters++
	k.mu.Unlock()

	select {
	case e.held <- struct{}{}:
		return sync.OnceFunc(func() {
			<-e.held
			k.leave(name, e)
		}), nil
	case <-ctx.Done():
		k.leave(name, e)
		return nil, ctx.Err()
	}
}

func (k *keyLock) leave(name string, e *keyEntry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.waiters--; e.waiters == 0 {
		delete(k.m, name)
	}
}
