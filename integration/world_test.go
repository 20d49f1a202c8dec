package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// lan is for stories in which speed does not matter.
var lan = wan.Config{Down: 1000, Up: 1000, RTT: time.Millisecond}

// slow is the link of an edge node: 100 Mbit/s and 100 ms.
var slow = wan.Config{Down: 100, Up: 100, RTT: 100 * time.Millisecond}

const (
	starlight = "starlight"
	overlayfs = "overlayfs"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "integration tests run containers and make network namespaces: run them as root (\"make test\")")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// world is a sandbox that fails its test instead of returning errors.
type world struct {
	*sandbox.World
	t   *testing.T
	bin tools.Binaries
}

func newWorld(t *testing.T, link wan.Config) *world {
	t.Helper()
	bin, err := tools.Product()
	if err != nil {
		t.Fatal(err)
	}
	return newWorldOf(t, link, bin)
}

func newWorldOf(t *testing.T, link wan.Config, bin tools.Binaries) *world {
	t.Helper()
	w, err := sandbox.New(t.Context(), link)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error("cleaning up:", err)
		}
	})
	return &world{World: w, t: t, bin: bin}
}

// node is a sandbox.Node that fails its test instead of returning errors.
type node struct {
	*sandbox.Node
	t *testing.T
}

func (w *world) node(c sandbox.NodeConfig) *node {
	w.t.Helper()
	if c.Name == "" {
		c.Name = "node"
	}
	if c.Binaries.Containerd == "" {
		c.Binaries = w.bin
	}
	n, err := w.StartNode(w.t.Context(), c)
	if n != nil {
		w.t.Cleanup(func() {
			if w.t.Failed() {
				w.t.Logf("log of %s:\n%s", c.Name, tail(n.Log(), 200))
			}
		})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return &node{n, w.t}
}

func tail(s string, lines int) string {
	l := strings.Split(s, "\n")
	return strings.Join(l[max(0, len(l)-lines):], "\n")
}

// proxyd starts a proxyd that serves the registry of the world.
func (w *world) proxyd(args ...string) *sandbox.Proxyd {
	w.t.Helper()
	return w.proxydWith(sandbox.ProxydConfig{Args: args})
}

func (w *world) proxydWith(c sandbox.ProxydConfig) *sandbox.Proxyd {
	w.t.Helper()
	c.Binary = w.bin.Proxyd
	p, err := w.StartProxyd(w.t.Context(), c)
	if p != nil {
		w.t.Cleanup(func() {
			if w.t.Failed() {
				w.t.Logf("log of proxyd:\n%s", tail(p.Log.String(), 100))
			}
		})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// accelerated is a world with proxyd, and a node that uses it.
func accelerated(t *testing.T, link wan.Config) (*world, *sandbox.Proxyd, *node) {
	t.Helper()
	w := newWorld(t, link)
	p := w.proxyd()
	return w, p, w.node(sandbox.NodeConfig{Proxies: []string{p.Address}})
}

// image builds an image of the corpus if it must.
func image(t *testing.T, name, tag string) corpus.Image {
	t.Helper()
	if err := corpus.Build(t.Context(), os.Stderr, name); err != nil {
		t.Fatal(err)
	}
	im, err := corpus.Load(name, tag)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// push pushes an image of the corpus and returns its reference.
func (w *world) push(name, tag string) string {
	w.t.Helper()
	ref, err := w.Push(w.t.Context(), image(w.t, name, tag).Layout, name, tag)
	if err != nil {
		w.t.Fatal(err)
	}
	return ref
}

// warm has proxyd ingest an image, by a pull of another node that is thrown away,
// so that a story sees the same with a fast machine and with a slow one.
func (w *world) warm(p *sandbox.Proxyd, refs ...string) {
	w.t.Helper()
	conf := w.Link.Config()
	if err := w.Link.Set(lan); err != nil {
		w.t.Fatal(err)
	}
	n := w.node(sandbox.NodeConfig{Name: "warm", Proxies: []string{p.Address}})
	for _, ref := range refs {
		n.pull(ref)
		n.wait(ref)
	}
	if err := n.Close(); err != nil {
		w.t.Fatal(err)
	}
	if err := w.Link.Set(conf); err != nil {
		w.t.Fatal(err)
	}
}

// count sets the counters to zero once nothing goes over the link any more: a node that
// has just started greets its proxies.
func (w *world) count() {
	w.t.Helper()
	if err := w.Link.Quiet(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if err := w.Link.Reset(); err != nil {
		w.t.Fatal(err)
	}
}

// counters since count.
func (w *world) counters() wan.Counters {
	w.t.Helper()
	c, err := w.Link.Counters()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// ctr runs ctr and returns its output.
func (n *node) ctr(args ...string) string {
	n.t.Helper()
	out, err := n.Ctr(n.t.Context(), args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// pull pulls into the snapshotter starlight.
func (n *node) pull(ref string, flags ...string) {
	n.t.Helper()
	if err := n.Pull(n.t.Context(), ref, append([]string{"--snapshotter", starlight}, flags...)...); err != nil {
		n.t.Fatal(err)
	}
}

// wait waits until everything of an image is local.
func (n *node) wait(ref string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 5*time.Minute)
	defer cancel()
	if _, err := n.Ctr(ctx, "starlight", "wait", ref); err != nil {
		n.t.Fatal(err)
	}
}

// output runs a command in a new container and returns what it wrote.
func (n *node) output(ref, id string, argv ...string) string {
	n.t.Helper()
	out, err := n.Output(n.t.Context(), sandbox.Run{Ref: ref, ID: id, Snapshotter: starlight, Argv: argv})
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// runReady starts the application of an image, waits until it is ready, and
// removes it.
func (n *node) runReady(ref, id, snapshotter string, r corpus.Ready) {
	n.t.Helper()
	c, err := n.Run(n.t.Context(), sandbox.Run{Ref: ref, ID: id, Snapshotter: snapshotter, Argv: r.Argv})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := c.WaitReady(n.t.Context(), r); err != nil {
		n.t.Fatal(err)
	}
	if err := c.Remove(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// status is what "ctr-starlight status --json" tells of one image.
type status struct {
	Namespace    string  `json:"namespace"`
	Ref          string  `json:"ref"`
	Mode         string  `json:"mode"`
	Reason       string  `json:"reason"`
	WireBytes    int64   `json:"wireBytes"`
	Objects      int64   `json:"objects"`
	ObjectsLocal int64   `json:"objectsLocal"`
	Percent      float64 `json:"percent"`
	Complete     bool    `json:"complete"`
	Vouched      bool    `json:"vouched"`
}

// status returns what the node says of a reference, in every namespace.
func (n *node) status(ref string) []status {
	n.t.Helper()
	out := n.ctr("starlight", "status", "--json", ref)
	var all []status
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		n.t.Fatalf("status is not JSON: %v: %s", err, out)
	}
	return all
}

// status1 is the only status of a reference.
func (n *node) status1(ref string) status {
	n.t.Helper()
	all := n.status(ref)
	if len(all) != 1 {
		n.t.Fatalf("got %d images with ref %s, want 1: %+v", len(all), ref, all)
	}
	return all[0]
}
