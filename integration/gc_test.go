package integration

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"

	"github.com/starlight-delta/starlight/integration/internal/process"
)

// What is removed stops coming. What a lease holds stays after its image has gone, and
// what another image needs that is just being pulled does, too. All the while, what the
// snapshots say they take adds up to what the disk has lost.
func TestRemovalFreesWhatNobodyNeeds(t *testing.T) {
	w, p, n := accelerated(t, slow)
	v1, v2 := w.push("redis", "v1"), w.push("redis", "v2")
	w.ingest(p, v1, v2)
	gone := func(when string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			if all, _ := n.wrongObjects(); all != 0 {
				return fmt.Errorf("%s: %d objects are left", when, all)
			}
			return nil
		})
	}

	w.dribble()
	n.pull(v1)
	n.ctr("image", "rm", "--sync", v1)
	gone("removed while it came")
	w.count()
	select {
	case <-time.After(time.Second):
	case <-t.Context().Done():
	}
	if got := w.counters().Down.Bytes; got > 100<<10 {
		t.Errorf("%d bytes came within a second after the image was removed", got)
	}

	w.fast()
	n.pull(v1)
	n.wait(v1)
	n.agree("one image")
	ctx := namespaces.WithNamespace(t.Context(), "default")
	c := n.client()
	img, err := c.GetImage(ctx, v1)
	if err != nil {
		t.Fatal(err)
	}
	diffIDs, err := img.RootFS(ctx)
	if err != nil {
		t.Fatal(err)
	}
	chain := identity.ChainID(diffIDs).String()
	lease, err := c.LeasesService().Create(ctx, leases.WithID("keep"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.LeasesService().AddResource(ctx, lease, leases.Resource{ID: chain, Type: "snapshots/" + starlight}); err != nil {
		t.Fatal(err)
	}
	want := n.objects()
	n.ctr("image", "rm", "--sync", v1)
	if got := n.objects(); got != want {
		t.Errorf("%d objects are left of an image whose snapshot a lease holds, want all %d", got, want)
	}
	n.clean()

	// Most of v2 is in what the lease holds, and is let go while the rest comes.
	w.dribble()
	n.pull(v2)
	if err := c.LeasesService().Delete(ctx, lease, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	if n.status1(v2).Complete {
		t.Error("everything was there already: the test shows nothing")
	}
	w.fast()
	n.wait(v2)
	n.clean()
	n.ctr("starlight", "gc") // the stream held what it had patches for
	if got, want := int64(n.objects()), n.status1(v2).Objects; got != want {
		t.Errorf("%d objects are there, want the %d of the image that is left", got, want)
	}
	n.agree("another image")
	n.ctr("run", "-d", "--net-host", "--snapshotter", starlight, v2, "writer", "sh", "-c",
		"dd if=/dev/urandom of=/big bs=1M count=20 && rm -rf /usr/share && sync && touch /written && exec sleep 3600")
	n.ctr("tasks", "exec", "--exec-id", "written", "writer", "sh", "-c", "while ! [ -e /written ]; do sleep 0.1; done")
	n.agree("a container that writes")
	n.unmounted(v2)
	gone("in the end")
}

// objects counts the objects of a node.
func (n *node) objects() int {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.Snapshotter(), "objects", "*", "*"))
	if err != nil {
		n.t.Fatal(err)
	}
	return len(files)
}

// agree checks that what containerd is told that snapshots take, with which image GC
// counts, is what the disk has lost, within 2 %.
func (n *node) agree(when string) {
	n.t.Helper()
	var told int64
	for line := range strings.Lines(n.ctr("snapshots", "--snapshotter", starlight, "usage", "-b")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] != "KEY" {
			size, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				n.t.Fatalf("%q: %v", line, err)
			}
			told += size
		}
	}
	if disk := n.onDisk(); !within(told, disk) {
		n.t.Errorf("%s: the snapshots take %d bytes, the disk has %d: more than 2 %% off", when, told, disk)
	}
}

// within tells whether two sizes are as good as the same.
func within(told, disk int64) bool { return max(told-disk, disk-told) <= disk/50 }

// onDisk is what everything of starlight takes, as du sees it.
func (n *node) onDisk() int64 {
	n.t.Helper()
	out, err := process.Run(nil, exec.CommandContext(n.t.Context(), "du", "-sx", "-B1", n.Snapshotter()))
	if err != nil {
		n.t.Fatal(err)
	}
	disk, err := strconv.ParseInt(strings.Fields(out)[0], 10, 64)
	if err != nil {
		n.t.Fatal(err)
	}
	return disk
}
