package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"sync/atomic"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
)

// streams are the bundles under way, by the name that their header gives.
type streams struct {
	mu sync.Mutex
	m  map[string]*stream // guarded by mu
}

// stream is a bundle under way. Its name cannot be guessed and was told only to
// a worker that the registry gave the image to: who knows it may have the image's
// objects as long as the stream lasts.
type stream struct {
	name   string
	ref    string // "host/repo@digest"
	img    *image
	claims *delta.Claims
	failed atomic.Bool // an answer broke off that had claimed objects

	worker string       // that it goes to, or ""
	hot    atomic.Bool  // it still sends what a start is expected to read
	moved  atomic.Int64 // when it last went on, Unix nanoseconds
}

// open registers a stream of the objects of a plan.
func (s *streams) open(ref, worker string, img *image, plan *delta.Plan) *stream {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	st := &stream{name: hex.EncodeToString(b[:]), ref: ref, img: img, claims: delta.NewClaims(img.delta, plan), worker: worker}
	st.hot.Store(plan.Hot > 0)
	st.moved.Store(time.Now().UnixNano())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = make(map[string]*stream)
	}
	s.m[st.name] = st
	return st
}

func (s *streams) close(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, st.name)
}

// find returns the stream if it is one of the image "name@digest".
func (s *streams) find(name, ref string) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.m[name]
	if st == nil || st.ref != ref {
		return nil
	}
	return st
}

const (
	// stuck is a stream that has not gone on for so long: nobody waits for it.
	stuck = 2 * time.Second
	// turn is how often a stream looks whether it may go on.
	turn = 50 * time.Millisecond
)

// ahead tells whether another stream to the same worker brings what a start is
// expected to read.
func (s *streams) ahead(st *stream) bool {
	if st.worker == "" {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.m {
		if other != st && other.worker == st.worker && other.hot.Load() &&
			time.Since(time.Unix(0, other.moved.Load())) < stuck {
			return true
		}
	}
	return false
}

// pause is delta.Steer.Pause for a stream: images that are pulled together share
// the link until each has what its start reads. The rest of all comes after.
func (s *streams) pause(st *stream) func(context.Context) {
	st.hot.Store(false)
	if !s.ahead(st) {
		return nil
	}
	return func(ctx context.Context) {
		t := time.NewTicker(turn)
		defer t.Stop()
		for s.ahead(st) {
			select {
			case <-t.C:
			case <-st.claims.Wake():
				return
			case <-ctx.Done():
				return
			}
		}
	}
}
