package engine

import (
	"testing"
	"time"
)

// Containers that begin one after the other within a window are one start of their group.
func TestStartsOfGroups(t *testing.T) {
	began := time.Unix(1000, 0)
	tr := &tracer{groups: map[string]groupStart{}}
	for _, c := range []struct {
		group       string
		at, started time.Duration
	}{
		{"shop", 0, 0}, {"other", 10 * time.Second, 10 * time.Second}, {"shop", 50 * time.Second, 0},
		{"shop", 100 * time.Second, 0},                 // within a window of the one before
		{"shop", 170 * time.Second, 170 * time.Second}, // deployed again
		{"shop", 175 * time.Second, 170 * time.Second},
	} {
		if got := tr.join(c.group, began.Add(c.at), time.Minute).Sub(began); got != c.started {
			t.Errorf("%s after %v: its start began after %v, want %v", c.group, c.at, got, c.started)
		}
	}
	if len(tr.groups) != 1 {
		t.Errorf("%d groups are known, want one", len(tr.groups))
	}
}
