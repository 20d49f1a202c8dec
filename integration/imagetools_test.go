package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/starlight-delta/starlight/integration/internal/registry"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// uploads counts the blobs that nodes have sent to a registry.
func uploads(r *registry.Registry) (n int) {
	for line := range strings.Lines(r.Log().String()) {
		if strings.HasPrefix(line, wan.EdgeAddr+" ") && strings.Contains(line, `"PUT /v2/`) && strings.Contains(line, "/blobs/uploads/") {
			n++
		}
	}
	return n
}

// secondRegistry is empty.
func (w *world) secondRegistry() *registry.Registry {
	w.t.Helper()
	r, err := registry.Start(w.t.Context(), w.Link.Cloud, registry.Config{Dir: filepath.Join(w.Dir, "second"), Port: 5200})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Closing(r)
	return r
}

// Images that were pulled lazily are pushed as they came: nothing is uploaded that
// the registry has, and the original blobs elsewhere.
func TestPushOfALazyImage(t *testing.T) {
	w, _, n := accelerated(t, lan)
	ref := w.push("tinyhttp", "v1")
	want, layers := w.manifestOf("tinyhttp", "v1")
	n.pull(ref)

	again := w.Registry.Ref("tinyhttp", "again")
	n.ctr("image", "tag", ref, again)
	n.ctr("image", "push", "--plain-http", again)
	if got := uploads(w.Registry); got != 0 {
		t.Errorf("got %d uploads to the registry that has the image, want none", got)
	}
	if d, _, err := w.Registry.Manifest(t.Context(), "tinyhttp", "again"); err != nil || d.Digest.String() != want {
		t.Errorf("got manifest %s, %v, want %s", d.Digest, err, want)
	}
	// To another repository the registry mounts them.
	copied := w.Registry.Ref("copy/of", "v1")
	n.ctr("image", "tag", ref, copied)
	n.ctr("image", "push", "--plain-http", copied)
	if got := uploads(w.Registry); got != 0 {
		t.Errorf("got %d uploads to another repository of the registry, want none", got)
	}

	second := w.secondRegistry()
	there := second.Ref("tinyhttp", "v1")
	n.ctr("image", "tag", ref, there)
	n.ctr("image", "push", "--plain-http", there)
	if d, _, err := second.Manifest(t.Context(), "tinyhttp", "v1"); err != nil || d.Digest.String() != want {
		t.Errorf("got manifest %s, %v in the second registry, want %s", d.Digest, err, want)
	}
	other := w.node(sandbox.NodeConfig{Name: "other"})
	if err := other.Pull(t.Context(), there); err != nil {
		t.Fatal(err)
	}
	if got := uploads(second); got != len(layers)+1 {
		t.Errorf("got %d uploads to an empty registry, want those of config and layers (%d)", got, len(layers)+1)
	}
	for _, l := range layers {
		if !strings.Contains(other.ctr("content", "ls", "-q"), l) {
			t.Errorf("layer %s was not pushed as it was", l)
		}
	}
	other.runReady(there, "app", overlayfs, image(t, "tinyhttp", "v1").Ready)
}

// What "nerdctl commit" does with a running container on a lazy image: its changes
// become a layer, and the result runs, here and elsewhere.
func TestCommitOfALazyContainer(t *testing.T) {
	w, _, n := accelerated(t, lan)
	ref := w.push("redis", "v1")
	n.pull(ref)
	n.ctr("run", "-d", "--net-host", "--snapshotter", starlight, ref, "app", "sh", "-c",
		"echo committed > /made && rm /etc/hostname && chmod 0700 /usr/bin/redis-server && touch /changed && sleep 600")
	n.ctr("tasks", "exec", "--exec-id", "look", "app", "sh", "-c", "while ! [ -e /changed ]; do sleep 0.1; done")
	committed := w.Registry.Ref("redis", "committed")
	n.commit("app", ref, committed)
	for _, c := range []struct{ argv, want string }{
		{"cat /made", "committed"},
		{"test ! -e /etc/hostname && stat -L -c %a /usr/bin/redis-server", "700"},
	} {
		if out := n.output(committed, "new-"+digest.FromString(c.argv).Encoded()[:6], "sh", "-c", c.argv); strings.TrimSpace(out) != c.want {
			t.Errorf("%s: got %q, want %q", c.argv, out, c.want)
		}
	}
	n.complete(committed)
	n.ctr("image", "push", "--plain-http", committed)
	if got := uploads(w.Registry); got != 2 {
		t.Errorf("got %d uploads, want those of the new layer and the new config", got)
	}
	// And pulled as an update of what is here.
	other := w.node(sandbox.NodeConfig{Name: "other"})
	if err := other.Pull(t.Context(), committed); err != nil {
		t.Fatal(err)
	}
	out, err := other.Output(t.Context(), sandbox.Run{Ref: committed, ID: "x", Snapshotter: overlayfs, Argv: []string{"cat", "/made"}})
	if err != nil || strings.TrimSpace(out) != "committed" {
		t.Errorf("elsewhere: got %q, %v", out, err)
	}
}

// commit makes an image of a container.
func (n *node) commit(container, from, to string) {
	n.t.Helper()
	c, ctx := n.client(), namespaces.WithNamespace(n.t.Context(), "default")
	ctx, done, err := c.WithLease(ctx)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() {
		if err := done(ctx); err != nil {
			n.t.Error(err)
		}
	}()
	must := func(err error) {
		n.t.Helper()
		if err != nil {
			n.t.Fatal(err)
		}
	}
	cs := c.ContentStore()
	layer, err := rootfs.CreateDiff(ctx, container, c.SnapshotService(starlight), c.DiffService())
	must(err)
	diffID, err := images.GetDiffID(ctx, cs, layer)
	must(err)
	base, err := c.GetImage(ctx, from)
	must(err)
	m, err := images.Manifest(ctx, cs, base.Target(), platforms.Default())
	must(err)
	b, err := content.ReadBlob(ctx, cs, m.Config)
	must(err)
	var config ocispec.Image
	must(json.Unmarshal(b, &config))
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	put := func(media string, v any, labels map[string]string) ocispec.Descriptor {
		b, err := json.Marshal(v)
		must(err)
		d := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(b), Size: int64(len(b))}
		must(content.WriteBlob(ctx, cs, d.Digest.String(), strings.NewReader(string(b)), d, content.WithLabels(labels)))
		return d
	}
	labels := map[string]string{}
	next := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: put(ocispec.MediaTypeImageConfig, config, nil), Layers: append(slices.Clone(m.Layers), layer)}
	for i, d := range append([]ocispec.Descriptor{next.Config}, next.Layers...) {
		labels["containerd.io/gc.ref.content."+string(rune('a'+i))] = d.Digest.String()
	}
	_, err = c.ImageService().Create(ctx, images.Image{Name: to, Target: put(next.MediaType, next, labels)})
	must(err)
	img, err := c.GetImage(ctx, to)
	must(err)
	must(img.Unpack(ctx, starlight, containerd.WithUnpackApplyOpts()))
}

// The commands of ctr that look into images and change them.
func TestImageCommands(t *testing.T) {
	w, _, n := accelerated(t, lan)
	ref := w.push("redis", "v1")
	n.pull(ref)
	n.complete(ref)
	if out := n.ctr("image", "usage", "--snapshotter", starlight, ref); !strings.Contains(out, "KiB") && !strings.Contains(out, "MiB") {
		t.Errorf("usage: got %q, want sizes", out)
	}
	dir := t.TempDir()
	n.ctr("image", "mount", "--snapshotter", starlight, "--rw", ref, dir)
	if err := os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o600); err != nil {
		t.Error(err)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "usr/bin/redis-server")); err != nil {
		t.Error(err)
	}
	n.ctr("image", "unmount", "--rm", "--snapshotter", starlight, dir)

	for name, flags := range map[string][]string{"uncompressed": {"--uncompress"}, "oci": {"--uncompress", "--oci"}} {
		converted := w.Registry.Ref("converted", name)
		n.ctr(append(append([]string{"image", "convert"}, flags...), ref, converted)...)
		n.complete(ref)
		if n.imageTarget(converted) == n.imageTarget(ref) {
			t.Errorf("convert %q changes nothing", flags)
		}
		if err := n.Pull(t.Context(), ref, "--snapshotter", overlayfs); err != nil {
			t.Fatal(err)
		}
		// The layers differ, the files do not: chains are those of the lazy image.
		if out := n.output(converted, name, "redis-server", "--version"); !strings.Contains(out, "Redis server") {
			t.Errorf("%s: got %q", name, out)
		}
		n.ctr("image", "rm", "--sync", converted)
	}
	n.wait(ref)
	n.runReady(ref, "app", starlight, image(t, "redis", "v1").Ready)
}

// The commands of ctr for snapshots, on a lazy chain.
func TestSnapshotCommands(t *testing.T) {
	w, _, n := accelerated(t, lan)
	ref := w.push("tinyhttp", "v1")
	n.pull(ref)
	sn := func(args ...string) string {
		t.Helper()
		return n.ctr(append([]string{"snapshots", "--snapshotter", starlight}, args...)...)
	}
	top := topSnapshot(sn("ls"))
	if top == "" {
		t.Fatalf("no committed snapshot in %q", sn("ls"))
	}
	sn("prepare", "work", top)
	if out := sn("tree"); !strings.Contains(out, "work") || !strings.Contains(out, top) {
		t.Errorf("tree: got %q", out)
	}
	dir := t.TempDir()
	if out := sn("mounts", dir, "work"); !strings.Contains(out, "mount -t bind") || !strings.Contains(out, dir) {
		t.Errorf("mounts: got %q", out)
	}
	if out := sn("info", "work"); !strings.Contains(out, top) {
		t.Errorf("info: got %q", out)
	}
	sn("label", "work", "a=b")
	if out := sn("info", "work"); !strings.Contains(out, `"a": "b"`) {
		t.Errorf("label: got %q", out)
	}
	if out := sn("usage"); !strings.Contains(out, "work") {
		t.Errorf("usage: got %q", out)
	}
	if out := sn("diff", "work"); out == "" {
		t.Error("diff: got nothing, want an empty layer")
	}
	sn("commit", "layer", "work")
	sn("view", "look", "layer")
	if out := sn("mounts", dir, "look"); !strings.Contains(out, "ro") {
		t.Errorf("mounts of a view: got %q", out)
	}
	if _, err := n.Ctr(t.Context(), "snapshots", "--snapshotter", starlight, "rm", "layer"); err == nil {
		t.Error("a snapshot with a child is removed")
	}
	sn("rm", "look")
	sn("rm", "layer")
	// What is there already is not unpacked again.
	sn("unpack", n.imageTarget(ref))
	n.runReady(ref, "app", starlight, image(t, "tinyhttp", "v1").Ready)
}

// topSnapshot finds the committed snapshot on which none rests.
func topSnapshot(list string) string {
	parents := map[string]bool{}
	var committed []string
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) > 2 {
			parents[f[1]] = true
		}
		if len(f) > 1 && f[len(f)-1] == "Committed" {
			committed = append(committed, f[0])
		}
	}
	for _, key := range committed {
		if !parents[key] {
			return key
		}
	}
	return ""
}
