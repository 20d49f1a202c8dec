package server

import (
	"testing"
	"time"
)

// fakeLink is a connection whose state a test makes up.
type fakeLink struct {
	linkState
	other  bool // is steered by something else
	limits []uint32
	held   int
	found  int // searches
}

func (l *fakeLink) state() (linkState, bool) { return l.linkState, !l.other }
func (l *fakeLink) search()                  { l.found++ }
func (l *fakeLink) hold(n int)               { l.held = n }
func (l *fakeLink) limit(rate uint32)        { l.limits = append(l.limits, rate) }

func TestPacer(t *testing.T) {
	const ms = time.Millisecond
	l := &fakeLink{}
	p := &pacer{link: l}
	now := time.Unix(0, 0)
	// step looks 100 ms later, and wants one limit, or none if it is 0.
	step := func(what string, s linkState, want uint32) {
		t.Helper()
		l.linkState, l.limits = s, nil
		now = now.Add(100 * ms)
		p.look(now)
		switch {
		case want == 0 && len(l.limits) > 0:
			t.Errorf("%s: got limits %v, want none", what, l.limits)
		case want != 0 && (len(l.limits) != 1 || l.limits[0] != want):
			t.Errorf("%s: got limits %v, want %d", what, l.limits, want)
		}
	}
	step("the rate grows", linkState{1e6, 100 * ms, 100 * ms, true, 0}, 0)
	step("and grows", linkState{4e6, 100 * ms, 100 * ms, true, 0}, 0)
	step("packets begin to queue", linkState{10e6, 130 * ms, 100 * ms, true, 0}, 0)
	step("the rate has grown lately", linkState{10e6, 190 * ms, 100 * ms, true, 0}, 0)
	step("the way is full", linkState{10e6, 190 * ms, 100 * ms, true, 0}, 7.5e6)
	step("the queue is short", linkState{10e6, 110 * ms, 100 * ms, true, 0}, 10e6)
	step("there is none", linkState{10e6, 101 * ms, 100 * ms, true, 0}, 12.5e6)
	step("BBR has found the rate", linkState{11e6, 105 * ms, 100 * ms, false, 0}, unlimited)
	step("and goes on", linkState{11e6, 140 * ms, 100 * ms, false, 0}, 0)
	p.search()
	p.search() // it does already
	if l.found != 1 {
		t.Errorf("%d searches, want one", l.found)
	}
	step("BBR searches anew", linkState{2e6, 190 * ms, 100 * ms, true, 0}, 0)
	step("and has found the rate", linkState{11e6, 105 * ms, 100 * ms, false, 0}, 0)
	p.look(now.Add(glance / 2))
	step("a way of another kind", linkState{}, 0)
	if want := int(10e6 * bufferTime.Seconds()); l.held != want {
		t.Errorf("%d bytes may wait, want %d", l.held, want)
	}
	l.other = true
	step("steered by something else", linkState{11e6, 140 * ms, 100 * ms, true, 0}, 0)
	p.end()
}

// A request that ends takes its limit with it.
func TestPacerEnds(t *testing.T) {
	l := &fakeLink{linkState: linkState{10e6, 200 * time.Millisecond, 100 * time.Millisecond, true, 0}}
	p := &pacer{link: l}
	for i := range 4 {
		p.look(time.Unix(int64(i), 0))
	}
	p.end()
	p.end()
	if n := len(l.limits); n < 2 || l.limits[n-1] != unlimited || l.limits[n-2] == unlimited {
		t.Errorf("got limits %v, want one that is taken away in the end", l.limits)
	}
}
