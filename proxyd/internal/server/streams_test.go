package server

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
)

// A stream is known until the last of it has arrived, unless it broke off, or an answer
// did that had claimed some of it.
func TestStreamsAreKnownUntilTheyHaveArrived(t *testing.T) {
	for name, c := range map[string]struct {
		whole, failed bool
		known         bool
	}{
		"whole":         {whole: true, known: true},
		"broke off":     {},
		"answer failed": {whole: true, failed: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s streams
				const ref = "host/repo@sha256:0"
				st := s.open(ref, "worker", &image{delta: emptyImage(t)}, &delta.Plan{})
				if s.find(st.name, ref) != st {
					t.Error("not known while it is under way")
				}
				if s.find(st.name, "host/other@sha256:0") != nil {
					t.Error("known under another image")
				}
				st.failed.Store(c.failed)
				s.close(st, c.whole)
				if got := s.find(st.name, ref) == st; got != c.known {
					t.Errorf("known after its end: %v, want %v", got, c.known)
				}
				time.Sleep(landing + time.Second)
				if s.find(st.name, ref) != nil || len(s.landing) > 0 {
					t.Error("known for ever")
				}
			})
		})
	}
}

// A stream that waits for others goes on when they leave the link idle, and not before.
func TestNobodyWaitsForAnIdleLink(t *testing.T) {
	const rate = 4 << 20
	for name, c := range map[string]struct {
		share  float64 // of the rate, that the others carry
		known  bool
		stuck  bool // at that
		wait   time.Duration
		search bool
	}{
		"busy":         {share: 0.9, known: true, wait: time.Second},
		"slow":         {share: 0.2, known: true, wait: idle},
		"stuck":        {share: 0.2, known: true, stuck: true, wait: 2 * idle, search: true},
		"unknown rate": {share: 0.2, wait: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s streams
				img := &image{delta: emptyImage(t)}
				st := s.open("r", "worker", img, &delta.Plan{Hot: 1})
				other := s.open("r", "worker", img, &delta.Plan{Hot: 1})
				p := &pacer{}
				if c.known {
					p.rate = rate
				}
				st.wrote(0, p)
				st.sent.Store(2 * lead)
				other.wrote(0, &pacer{rate: c.share * rate, settled: c.stuck})
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				var others sync.WaitGroup
				defer func() { cancel(); others.Wait() }()
				others.Go(func() {
					for ctx.Err() == nil {
						time.Sleep(turn)
						other.wrote(int(c.share*rate*turn.Seconds()), nil)
					}
				})
				began := time.Now()
				s.wait(ctx, st)
				if took := time.Since(began); took < c.wait || took > c.wait+turn {
					t.Errorf("waited for %v, want %v", took, c.wait)
				}
				if got := other.search.Load(); got != c.search {
					t.Errorf("the other is to search for a better rate: %v, want %v", got, c.search)
				}
			})
		})
	}
}
