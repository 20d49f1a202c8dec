// Package keylock locks by key, with waiters that heed their context.
package keylock

import (
	"context"
	"sync"
)

// Locker holds one lock for each key in use. The zero value is ready.
type Locker struct {
	mu    sync.Mutex
	locks map[string]*lock // guarded by mu
}

type lock struct {
	held  chan struct{} // capacity 1; full while the lock is held
	users int           // holder and waiters
}

// Lock takes the lock of key, or fails with the error of ctx.
func (l *Locker) Lock(ctx context.Context, key string) error {
	k := l.use(key)
	select {
	case k.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		l.drop(key, k)
		return context.Cause(ctx)
	}
}

// Unlock gives back the lock of key. It panics if nobody holds it.
func (l *Locker) Unlock(key string) {
	l.mu.Lock()
	k := l.locks[key]
	l.mu.Unlock()
	if k == nil {
		panic("keylock: unlock of the unlocked key " + key)
	}
	<-k.held
	l.drop(key, k)
}

func (l *Locker) use(key string) *lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.locks[key]
	if k == nil {
		k = &lock{held: make(chan struct{}, 1)}
		if l.locks == nil {
			l.locks = map[string]*lock{}
		}
		l.locks[key] = k
	}
	k.users++
	return k
}

func (l *Locker) drop(key string, k *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.locks, key)
	}
}
