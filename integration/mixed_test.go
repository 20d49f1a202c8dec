package integration

import (
	"strings"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/internal/fscmp"
)

// proxies starts a node anew with other proxies, as an operator does who edits its
// configuration.
func (n *node) proxies(addresses ...string) {
	n.t.Helper()
	if err := n.Stop(); err != nil {
		n.t.Fatal(err)
	}
	if err := n.Configure(func(c *sandbox.NodeConfig) { c.Proxies = addresses }); err != nil {
		n.t.Fatal(err)
	}
	if err := n.Start(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// like compares an image's files with those that overlayfs has of it.
func (n *node) like(ref string, start time.Time) {
	n.t.Helper()
	if err := n.Pull(n.t.Context(), ref, "--snapshotter", overlayfs); err != nil {
		n.t.Fatal(err)
	}
	diffs, err := fscmp.Compare(n.mount(n.t, ref, overlayfs), n.mount(n.t, ref, starlight), fscmp.Options{DirTimesBefore: start, Max: 10})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, d := range diffs {
		n.t.Errorf("%s: %v", ref, d)
	}
}

// Layers that were unpacked and layers that are lazy make one root file system, in
// either order, over restarts with proxies and without.
func TestMixedStacks(t *testing.T) {
	start := time.Now()
	w := newWorld(t, lan)
	p := w.proxyd()
	// Two layers each, the lower one shared.
	v1, v2 := w.push("tinyhttp", "v1"), w.push("tinyhttp", "v2")
	w.ingest(p, v1, v2)
	ready := image(t, "tinyhttp", "v1").Ready
	for _, c := range []struct {
		name          string
		first, second []string // proxies while v1 and v2 are pulled
		modes         [2]string
	}{
		{"delta on plain", nil, []string{p.Address}, [2]string{"plain", "delta"}},
		{"plain on delta", []string{p.Address}, nil, [2]string{"delta", "plain"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := sandbox.NodeConfig{Name: strings.ReplaceAll(c.name, " ", "-"), Proxies: c.first}
			n := &node{w.node(conf).Node, t}
			n.pull(v1)
			n.runReady(v1, "v1", starlight, ready)
			n.wait(v1)
			n.proxies(c.second...)
			// What was pulled in the other mode runs as before.
			n.runReady(v1, "v1-again", starlight, ready)
			n.pull(v2)
			n.runReady(v2, "v2", starlight, ready)
			n.wait(v2)
			for i, ref := range []string{v1, v2} {
				if s := n.status1(ref); s.Mode != c.modes[i] {
					t.Errorf("got %+v, want %s", s, c.modes[i])
				}
				n.like(ref, start)
				n.complete(ref)
			}
			// And back: nothing is lost by the change.
			n.proxies(c.first...)
			for _, ref := range []string{v1, v2} {
				n.runReady(ref, "back", starlight, ready)
			}
			// One of the two goes, the other stays whole.
			n.ctr("image", "rm", "--sync", v1)
			n.like(v2, start)
		})
	}
}

// An image that was pulled plain becomes a delta when it is pulled after its
// removal, and stays what it is if it is not removed.
func TestPlainImageBecomesDelta(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	ref := w.push("tinyhttp", "v1")
	n := w.node(sandbox.NodeConfig{})
	n.pull(ref)
	n.proxies(p.Address)
	n.pull(ref)
	n.runReady(ref, "again", starlight, image(t, "tinyhttp", "v1").Ready)
	n.ctr("image", "rm", "--sync", ref)
	n.pull(ref)
	if s := n.status1(ref); s.Mode != "delta" {
		t.Errorf("got %+v, want a delta", s)
	}
	n.wait(ref)
	n.runReady(ref, "delta", starlight, image(t, "tinyhttp", "v1").Ready)
}
