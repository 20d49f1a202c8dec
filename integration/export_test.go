package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// A lazily pulled image is complete for containerd: check says so, and export
// gives an archive that stock containerd imports, with all digests unchanged.
func TestExportIsImportedByStockContainerd(t *testing.T) {
	w, _, n := accelerated(t, lan)
	ref := w.push("redis", "v1")
	want, layers := w.manifestOf("redis", "v1")
	n.pull(ref)
	if got := n.imageTarget(ref); got != want {
		t.Errorf("got target %s, want %s as in the registry", got, want)
	}
	if out := n.ctr("image", "check", "--snapshotter", starlight, "name=="+ref); !strings.Contains(out, "complete") || strings.Contains(out, "incomplete") {
		t.Errorf("image check: got %q, want complete", out)
	}
	tar := filepath.Join(w.Dir, "export.tar")
	n.ctr("image", "export", tar, ref)

	bin, err := tools.Stock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stock := w.node(sandbox.NodeConfig{Name: "stock", Binaries: bin})
	stock.ctr("image", "import", tar)
	if got := stock.imageTarget(ref); got != want {
		t.Errorf("got target %s after import, want %s", got, want)
	}
	blobs := stock.ctr("content", "ls", "-q")
	for _, l := range layers {
		if !strings.Contains(blobs, l) {
			t.Errorf("stock containerd has no layer %s after import", l)
		}
	}
	stock.runReady(ref, "imported", overlayfs, image(t, "redis", "v1").Ready)
}
