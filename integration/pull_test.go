package integration

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"golang.org/x/sync/errgroup"
)

// A pull returns when the metadata is local, and the container starts while most
// bytes are still on the way; what it reads is right all the same.
func TestPullStartsWhileBytesAreInFlight(t *testing.T) {
	w, p, n := accelerated(t, slow)
	im := image(t, "express", "v1")
	ref := w.push("express", "v1")
	w.warm(p, ref)
	// Slow enough that the rest surely takes longer than the start.
	link := slow
	link.Down = 20
	if err := w.Link.Set(link); err != nil {
		t.Fatal(err)
	}
	w.count()
	n.pull(ref)
	if c := w.counters(); c.RoundTrips > 3 {
		t.Errorf("got %d round trips for a cold pull, want 2 (and one more at most that runs beside)", c.RoundTrips)
	}
	if s := n.status1(ref); s.Mode != "delta" || s.Complete {
		t.Fatalf("got %+v after the pull, want a delta with bytes on the way", s)
	}
	c, err := n.Run(t.Context(), sandbox.Run{Ref: ref, ID: "app", Snapshotter: starlight})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context(), im.Ready); err != nil {
		t.Fatal(err)
	}
	if s := n.status1(ref); s.Complete {
		t.Errorf("got everything local when the application was ready, want bytes still on the way")
	}
	if err := w.Link.Set(lan); err != nil {
		t.Fatal(err)
	}
	n.wait(ref)
	if s := n.status1(ref); !s.Complete || s.ObjectsLocal != s.Objects || s.Percent != 100 {
		t.Errorf("got %+v after wait, want all objects local", s)
	}
	// What is open goes on, and new processes see the same files.
	out := n.ctr("tasks", "exec", "--exec-id", "x", "app", "sh", "-c", "find /usr -type f | xargs cat | wc -c")
	if strings.TrimSpace(out) == "0" {
		t.Error("the container cannot read its files after completion")
	}
	if err := c.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l := w.Registry.Log().String(); strings.Count(l, "/v2/express/blobs/") == 0 {
		t.Error("the registry's log shows no blobs: the rig is wrong")
	}
}

// The second version brings only contents that are nowhere on the node, whatever
// image they came from, in one round trip.
func TestUpdateSendsOnlyNewContents(t *testing.T) {
	w, p, n := accelerated(t, slow)
	v1, v2 := w.push("redis", "v1"), w.push("redis", "v2")
	other := w.push("express", "v2") // on the same base as redis v2
	w.warm(p, v1, v2, other)
	fresh := image(t, "redis", "v1")
	w.count()
	n.pull(v1)
	n.wait(v1)
	if c := w.counters(); c.Down.Bytes > fresh.Gzip*11/10 {
		t.Errorf("got %d bytes for a fresh pull, want at most a tenth more than the layers (%d)", c.Down.Bytes, fresh.Gzip)
	}
	w.count()
	n.pull(v2)
	n.wait(v2)
	c := w.counters()
	if c.Down.Bytes > fresh.Gzip/4 {
		t.Errorf("got %d bytes for the update, want less than a quarter of the layers (%d)", c.Down.Bytes, fresh.Gzip)
	}
	if c.RoundTrips > 2 {
		t.Errorf("got %d round trips on a warm connection, want 1 (and one more at most that runs beside)", c.RoundTrips)
	}
	n.runReady(v2, "v2", starlight, image(t, "redis", "v2").Ready)

	express := image(t, "express", "v2")
	w.count()
	n.pull(other)
	n.wait(other)
	if c := w.counters(); c.Down.Bytes > express.Gzip*7/10 {
		t.Errorf("got %d bytes for another image on a base that is here, want much less than its layers (%d)", c.Down.Bytes, express.Gzip)
	}
}

// An image costs nothing in a second namespace.
func TestSecondNamespaceCostsNothing(t *testing.T) {
	w, p, n := accelerated(t, slow)
	ref := w.push("redis", "v1")
	w.warm(p, ref)
	n.pull(ref)
	n.wait(ref)
	w.count()
	n.ctr("-n", "other", "image", "pull", "--plain-http", "--snapshotter", starlight, ref)
	c := w.counters()
	if c.Down.Bytes > 64<<10 {
		t.Errorf("got %d bytes for the second namespace, want next to nothing", c.Down.Bytes)
	}
	out, err := n.Output(t.Context(), sandbox.Run{Ref: ref, ID: "x", Namespace: "other", Snapshotter: starlight, Argv: []string{"redis-server", "--version"}})
	if err != nil || !strings.Contains(out, "Redis server") {
		t.Errorf("got %q, %v in the second namespace, want the version of Redis", out, err)
	}
	if all := n.status(ref); len(all) != 2 {
		t.Errorf("got %+v, want one status for each of two namespaces", all)
	}
	// Removing it in one does no harm to the other.
	n.ctr("image", "rm", "--sync", ref)
	if _, err := n.Output(t.Context(), sandbox.Run{Ref: ref, ID: "y", Namespace: "other", Snapshotter: starlight, Argv: []string{"redis-server", "--version"}}); err != nil {
		t.Error("after the other namespace's image was removed:", err)
	}
}

// Two pulls of overlapping images at the same time send each object once.
func TestConcurrentPullsSendEachObjectOnce(t *testing.T) {
	w := newWorld(t, slow)
	p := w.sameBytes()
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}})
	a, b := w.push("redis", "v2"), w.push("express", "v2")
	w.warm(p, a, b)

	one := w.node(sandbox.NodeConfig{Name: "one-by-one", Proxies: []string{p.Address}})
	w.count()
	for _, ref := range []string{a, b} {
		one.pull(ref)
		one.wait(ref)
	}
	want := w.counters().Down.Bytes

	w.count()
	var g errgroup.Group
	for _, ref := range []string{a, b} {
		g.Go(func() error { return n.Pull(t.Context(), ref, "--snapshotter", starlight) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	n.wait(a)
	n.wait(b)
	if got := w.counters().Down.Bytes; got > want*105/100 {
		t.Errorf("got %d bytes for two pulls at once, want those of one after the other (%d) within 5 %%", got, want)
	}
	n.runReady(b, "b", starlight, image(t, "express", "v2").Ready)
}

// containerd is killed while a pull is in flight, with a container that reads:
// the reader waits, and everything arrives after the restart.
func TestRestartWithPullInFlight(t *testing.T) {
	w, p, n := accelerated(t, slow)
	ref := w.push("redis", "v1")
	w.warm(p, ref)
	link := slow
	link.Down = 10
	if err := w.Link.Set(link); err != nil {
		t.Fatal(err)
	}
	n.pull(ref)
	n.ctr("run", "-d", "--net-host", "--snapshotter", starlight, ref, "reader", "sh", "-c",
		"find / -xdev -type f -print0 | sort -z | xargs -0 cat > /dev/null && touch /done && sleep 600")
	n.Kill()
	if err := w.Link.Set(lan); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.wait(ref)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	exec := []string{"tasks", "exec", "--exec-id", "look", "reader", "sh", "-c", "while ! [ -e /done ]; do sleep 0.1; done; md5sum /usr/bin/redis-server"}
	got, err := n.Ctr(ctx, exec...)
	if err != nil {
		t.Fatal("the reader did not end its work after the restart: ", err)
	}
	if want := n.output(ref, "fresh", "md5sum", "/usr/bin/redis-server"); got != want {
		t.Errorf("got %q in the container that lived through the crash, want %q", got, want)
	}
}

// ctr-starlight tells what there is.
func TestCtrStarlight(t *testing.T) {
	w, p, n := accelerated(t, lan)
	ref := w.push("tinyhttp", "v1")
	n.pull(ref)
	n.wait(ref)
	if s := n.status1(ref); s.Mode != "delta" || !s.Complete || s.WireBytes == 0 || s.Objects == 0 {
		t.Errorf("got %+v, want a complete delta", s)
	}
	if out := n.ctr("starlight", "status"); !strings.Contains(out, ref) || !strings.Contains(out, "delta") {
		t.Errorf("status: got %q, want the image and its mode", out)
	}
	if out := n.ctr("starlight", "proxy", "ls"); !strings.Contains(out, p.Address) {
		t.Errorf("proxy ls: got %q, want %s", out, p.Address)
	}
	if out := n.ctr("starlight", "proxy", "ping"); !regexp.MustCompile(`\d+(\.\d+)? ?[mµ]s`).MatchString(out) {
		t.Errorf("proxy ping: got %q, want a time", out)
	}
	if out := n.ctr("starlight", "version"); strings.TrimSpace(out) == "" {
		t.Error("version: got nothing")
	}
	if _, err := n.Ctr(t.Context(), "starlight", "wait", "nobody.example/knows:this"); err == nil {
		t.Error("wait for an unknown image succeeds")
	}
}

// The plugins load, and exactly one of the types that may exist only once.
func TestEveryPluginLoads(t *testing.T) {
	w := newWorld(t, lan)
	n := w.node(sandbox.NodeConfig{CRI: true})
	for line := range strings.Lines(n.ctr("plugins", "ls")) {
		f := strings.Fields(line)
		if len(f) == 0 || f[len(f)-1] != "error" {
			continue
		}
		// Snapshotters and drivers for file systems that a machine may lack.
		if !strings.Contains(f[0], "snapshotter") && !strings.Contains(f[0], "mount") && !strings.Contains(f[0], "differ") {
			t.Errorf("plugin failed: %s", line)
		}
	}
}

// imageTarget is the digest that the node has for a reference.
func (n *node) imageTarget(ref string) string {
	n.t.Helper()
	for line := range strings.Lines(n.ctr("image", "ls", "name=="+ref)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == ref {
			return f[2]
		}
	}
	n.t.Fatalf("no image %s", ref)
	return ""
}

// manifestOf reads the manifest that a reference names in the registry.
func (w *world) manifestOf(name, tag string) (digest string, layers []string) {
	w.t.Helper()
	d, b, err := w.Registry.Manifest(w.t.Context(), name, tag)
	if err != nil {
		w.t.Fatal(err)
	}
	var m struct {
		Layers []struct {
			Digest string `json:"digest"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		w.t.Fatal(err)
	}
	for _, l := range m.Layers {
		layers = append(layers, l.Digest)
	}
	return d.Digest.String(), layers
}
