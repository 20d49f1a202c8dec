package server

import (
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
