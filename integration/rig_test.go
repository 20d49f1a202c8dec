package integration

import (
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// TestRigWithStockContainerd proves the rig itself: what it says of Starlight is
// worth nothing if stock containerd does not pull and run in it, or if it leaves
// something behind.
func TestRigWithStockContainerd(t *testing.T) {
	bin, err := tools.Stock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldOf(t, lan, bin)
	n := w.node(sandbox.NodeConfig{})
	for _, name := range []string{"redis", "tinyhttp"} {
		ref := w.push(name, "v1")
		w.count()
		if err := n.Pull(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		im := image(t, name, "v1")
		if c := w.counters(); c.Down.Bytes < im.Gzip || c.Down.Bytes > im.Gzip*11/10 {
			t.Errorf("%s: got %d bytes over the link, want those of the layers (%d) and at most a tenth more", name, c.Down.Bytes, im.Gzip)
		}
		n.runReady(ref, name, overlayfs, im.Ready)
	}
	if l := w.Registry.Log().String(); !strings.Contains(l, "/v2/redis/manifests/v1") {
		t.Error("the registry's log does not show the pull")
	}
	// Containers survive a crash of containerd, and it comes back.
	n.Kill()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := n.ctr("image", "ls", "-q"); !strings.Contains(out, "redis") {
		t.Errorf("got images %q after a crash, want redis", out)
	}
}
