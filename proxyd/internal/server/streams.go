package server

import (
	"crypto/rand"
	"encoding/hex"
	"sync"
	"sync/atomic"

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
}

// open registers a stream of the objects of a plan.
func (s *streams) open(ref string, img *image, plan *delta.Plan) *stream {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	st := &stream{name: hex.EncodeToString(b[:]), ref: ref, img: img, claims: delta.NewClaims(img.delta, plan)}
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
