package keylock

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestLockExcludes(t *testing.T) {
	var (
		l  Locker
		wg sync.WaitGroup
		n  = map[string]*int{"a": new(int), "b": new(int)}
	)
	for range 50 {
		for key, count := range n {
			wg.Go(func() {
				if err := l.Lock(t.Context(), key); err != nil {
					t.Error(err)
					return
				}
				*count++ // the race detector watches
				l.Unlock(key)
			})
		}
	}
	wg.Wait()
	if *n["a"] != 50 || *n["b"] != 50 {
		t.Errorf("got %d and %d, want 50", *n["a"], *n["b"])
	}
	if len(l.locks) != 0 {
		t.Errorf("%d locks are left", len(l.locks))
	}
}

func TestLockHeedsContext(t *testing.T) {
	var l Locker
	if err := l.Lock(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	l.Unlock("a")
	if len(l.locks) != 0 {
		t.Errorf("%d locks are left", len(l.locks))
	}
}
