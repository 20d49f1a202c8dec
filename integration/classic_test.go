package integration

import (
	"net/http"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/wan"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// client is containerd's client, as nerdctl has it.
func (n *node) client() *containerd.Client {
	n.t.Helper()
	c, err := containerd.New(n.Socket)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			n.t.Error(err)
		}
	})
	return c
}

// resolver asks registries from the near end of the link, in plain HTTP.
func (w *world) resolver() remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
		docker.WithPlainHTTP(docker.MatchAllHosts), docker.WithClient(w.Link.Edge.Client()))})
}

// clientPull pulls with the client's own Pull.
func (w *world) clientPull(n *node, ref string, opts ...containerd.RemoteOpt) containerd.Image {
	w.t.Helper()
	ctx := namespaces.WithNamespace(w.t.Context(), "default")
	img, err := n.client().Pull(ctx, ref, append([]containerd.RemoteOpt{
		containerd.WithResolver(w.resolver()), containerd.WithPullUnpack, containerd.WithPullSnapshotter(starlight),
	}, opts...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	return img
}

// fetches counts how often a node has asked the registry for one of the layers.
func (w *world) fetches(layers []string) (n int) {
	for line := range strings.Lines(w.Registry.Log().String()) {
		for _, l := range layers {
			if strings.HasPrefix(line, wan.EdgeAddr+" ") && strings.Contains(line, "/blobs/"+l) {
				n++
			}
		}
	}
	return n
}

// pulls counts the delta pulls of a node.
func (n *node) pulls() int { return strings.Count(n.Log(), "image metadata pulled") }

// complete checks that containerd has the image complete, as any other.
func (n *node) complete(ref string) {
	n.t.Helper()
	if out := n.ctr("image", "check", "--snapshotter", starlight, "name=="+ref); !strings.Contains(out, "complete") || strings.Contains(out, "incomplete") {
		n.t.Errorf("image check: got %q, want complete", out)
	}
}

// ingest has proxyd read images before somebody waits for them.
func (w *world) ingest(p *sandbox.Proxyd, refs ...string) {
	w.t.Helper()
	for _, ref := range refs {
		body, encoding, err := wire.EncodeRequest(&wire.DeltaRequest{Ref: ref, Platform: "linux/amd64", HeaderOnly: true})
		if err != nil {
			w.t.Fatal(err)
		}
		if code, answer := post(w.t, w.Link.Edge, p.Address+wire.RouteDelta, body, encoding); code != http.StatusOK {
			w.t.Fatalf("proxyd answers %d: %q", code, answer)
		}
	}
}

// A client that pulls for itself, as nerdctl 2.2 does, gets the same delta pull: one
// request, no layer from the registry, and an image that is complete.
func TestClientPullIsDelta(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	refs := []string{w.push("tinyhttp", "v1"), w.push("tinyhttp", "v2")}
	w.ingest(p, refs...)
	for name, opts := range map[string][]containerd.RemoteOpt{
		"client":      nil,
		"annotations": {containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper("forged.example/other:tag"))},
	} {
		t.Run(name, func(t *testing.T) {
			n := &node{w.node(sandbox.NodeConfig{Name: name, Proxies: []string{p.Address}}).Node, t}
			ctx := namespaces.WithNamespace(t.Context(), "default")
			for i, ref := range refs {
				_, layers := w.manifestOf("tinyhttp", corpus.Tags[i])
				before := w.fetches(layers)
				img := w.clientPull(n, ref, opts...)
				if got := n.pulls(); got != i+1 {
					t.Errorf("got %d delta pulls, want %d", got, i+1)
				}
				if got := w.fetches(layers) - before; got != 0 {
					t.Errorf("the node asked the registry %d times for layers, want none", got)
				}
				if s := n.status1(ref); s.Mode != "delta" || s.Namespace != "default" {
					t.Errorf("got %+v, want a delta in default", s)
				}
				if ok, err := img.IsUnpacked(ctx, starlight); !ok || err != nil {
					t.Errorf("unpacked: %v, %v", ok, err)
				}
				n.complete(ref)
				n.runReady(ref, "app", starlight, image(t, "tinyhttp", corpus.Tags[i]).Ready)
				n.wait(ref)
			}
			// A namespace that has nothing yet asks for nothing that the node has.
			ctx = namespaces.WithNamespace(t.Context(), "other")
			_, err := n.client().Pull(ctx, refs[1], containerd.WithResolver(w.resolver()), containerd.WithPullUnpack, containerd.WithPullSnapshotter(starlight))
			if err != nil {
				t.Fatal(err)
			}
			if got := n.pulls(); got != 2 {
				t.Errorf("got %d delta pulls after one in another namespace, want 2", got)
			}
			if out := n.ctr("-n", "other", "image", "check", "--snapshotter", starlight); strings.Contains(out, "incomplete") {
				t.Errorf("image check in another namespace: got %q, want complete", out)
			}
		})
	}
}

// What cannot be accelerated is unpacked as by stock containerd, and says why.
func TestClientPullFallsBack(t *testing.T) {
	w := newWorld(t, lan)
	n := w.node(sandbox.NodeConfig{Proxies: []string{"http://" + wan.CloudAddr + ":1"}})
	ref := w.push("tinyhttp", "v1")
	w.clientPull(n, ref)
	if s := n.status1(ref); s.Mode != "plain" || !strings.Contains(s.Reason, "refused") {
		t.Errorf("got %+v, want a plain pull because of a refused connection", s)
	}
	if got := strings.Count(n.Log(), "not a delta pull"); got != 1 {
		t.Errorf("the log says %d times why, want once", got)
	}
	n.complete(ref)
	n.runReady(ref, "app", starlight, image(t, "tinyhttp", "v1").Ready)
}

// ctr fetches all layers before it names a snapshotter. Where starlight is the
// default they are virtual by then; elsewhere nothing is lost but the delta.
func TestCtrPullLocal(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	ref := w.push("tinyhttp", "v1")
	w.ingest(p, ref)
	for _, c := range []struct {
		name string
		ours bool
	}{{"default", true}, {"other", false}} {
		t.Run(c.name, func(t *testing.T) {
			n := &node{w.node(sandbox.NodeConfig{Name: c.name, Proxies: []string{p.Address}}).Node, t}
			if c.ours {
				n.ctr("namespaces", "create", "default", "containerd.io/defaults/snapshotter="+starlight)
			}
			_, layers := w.manifestOf("tinyhttp", "v1")
			before := w.fetches(layers)
			n.ctr("image", "pull", "--local", "--plain-http", "--snapshotter", starlight, ref)
			fetched, s := w.fetches(layers)-before, n.status1(ref)
			switch {
			case c.ours && (fetched != 0 || n.pulls() != 1 || s.Mode != "delta"):
				t.Errorf("got %d layers from the registry, %d delta pulls, %+v, want one delta pull only", fetched, n.pulls(), s)
			case !c.ours && (fetched != len(layers) || n.pulls() != 0 || s.Mode != "plain" || !strings.Contains(s.Reason, "--local")):
				t.Errorf("got %d layers from the registry, %d delta pulls, %+v, want a plain pull and the reason", fetched, n.pulls(), s)
			}
			n.complete(ref)
			n.runReady(ref, "app", starlight, image(t, "tinyhttp", "v1").Ready)
			n.wait(ref)
		})
	}
}

// An image that is gone and pulled again is a delta again.
func TestClientPullAfterRemoval(t *testing.T) {
	w, _, n := accelerated(t, lan)
	ref := w.push("tinyhttp", "v1")
	for i := range 2 {
		w.clientPull(n, ref)
		if s := n.status1(ref); s.Mode != "delta" {
			t.Fatalf("pull %d: got %+v, want a delta", i, s)
		}
		n.wait(ref)
		n.ctr("image", "rm", "--sync", ref)
		ctx := namespaces.WithNamespace(t.Context(), "default")
		if _, err := n.client().GetImage(ctx, ref); !errdefs.IsNotFound(err) {
			t.Fatalf("image after removal: %v", err)
		}
	}
}
