package integration

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/weird"
	"github.com/starlight-delta/starlight/internal/fscmp"
)

// Every path of every root file system looks the same through starlight as
// unpacked by overlayfs.
func TestRootfsEqualsOverlayfs(t *testing.T) {
	start := time.Now()
	w, _, n := accelerated(t, lan)
	for _, im := range weird.Images() {
		t.Run(im.Name, func(t *testing.T) {
			layout := filepath.Join(w.Dir, "layouts", im.Name)
			if err := im.Write(layout); err != nil {
				t.Fatal(err)
			}
			ref, err := w.Push(t.Context(), layout, "weird/"+im.Name, weird.Tag)
			if err != nil {
				t.Fatal(err)
			}
			n.sameRootfs(t, ref, start)
		})
	}
	names := corpus.QuickNames
	if !testing.Short() {
		names = corpus.AllNames
	}
	for _, name := range names {
		for _, tag := range corpus.Tags {
			t.Run(name+"-"+tag, func(t *testing.T) {
				ref, err := w.Push(t.Context(), image(t, name, tag).Layout, name, tag)
				if err != nil {
					t.Fatal(err)
				}
				n.sameRootfs(t, ref, start)
			})
		}
	}
}

// sameRootfs compares while bytes may be on the way, and when all are local. Unpacking
// leaves its own time, later than start, on directories that no layer lists.
func (n *node) sameRootfs(t *testing.T, ref string, start time.Time) {
	t.Helper()
	if err := n.Pull(t.Context(), ref, "--snapshotter", overlayfs); err != nil {
		t.Fatal(err)
	}
	if err := n.Pull(t.Context(), ref, "--snapshotter", starlight); err != nil {
		t.Fatal(err)
	}
	if s := (&node{n.Node, t}).status1(ref); s.Mode != "delta" {
		t.Fatalf("got %+v, want a delta", s)
	}
	a, b := n.mount(t, ref, overlayfs), n.mount(t, ref, starlight)
	for _, when := range []string{"in flight", "complete"} {
		diffs, err := fscmp.Compare(a, b, fscmp.Options{DirTimesBefore: start, Max: 20})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range diffs {
			t.Errorf("%s: %v", when, d)
		}
		(&node{n.Node, t}).wait(ref)
		b = n.mount(t, ref, starlight)
	}
}

// mount mounts a view of an image's root file system.
func (n *node) mount(t *testing.T, ref, snapshotter string) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := n.Ctr(t.Context(), "image", "mount", "--snapshotter", snapshotter, ref, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := n.Ctr(cleanupContext(t), "image", "unmount", "--rm", "--snapshotter", snapshotter, dir); err != nil {
			t.Error(err, strings.TrimSpace(out))
		}
	})
	return dir
}
