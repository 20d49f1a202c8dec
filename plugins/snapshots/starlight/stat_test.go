package starlight_test

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc/peer"

	"github.com/starlight-delta/starlight/plugins/snapshots/starlight"
)

// CRI, which keeps the usage of committed snapshots for ever, is told that lazy ones are
// not committed; nobody else is, nor is CRI of others.
func TestCRIAsksForUsageAgain(t *testing.T) {
	needRoot(t)
	e := newLazy(t)
	s := newLazySnapshotter(t, e, starlight.Config{})
	lazy := adopt(t, s, e.add(t, "i", map[string]string{"f": "contents"}), "")
	cri := namespaces.WithNamespace(t.Context(), "k8s.io")
	_, err := s.Prepare(t.Context(), "active", "")
	must(t, err)
	must(t, s.Commit(t.Context(), "plain", "active"))
	check := func(ctx context.Context, who, key string, want snapshots.Kind) {
		t.Helper()
		if info, err := s.Stat(ctx, key); err != nil || info.Kind != want {
			t.Errorf("%s sees %q: got %v, %v, want %v", who, key, info.Kind, err, want)
		}
	}
	check(cri, "CRI", lazy, snapshots.KindActive)
	check(cri, "CRI", "plain", snapshots.KindCommitted)
	check(peer.NewContext(cri, &peer.Peer{}), "a client", lazy, snapshots.KindCommitted)
	check(t.Context(), "the process", lazy, snapshots.KindCommitted)
}
