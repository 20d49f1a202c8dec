package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/weird"
)

// app is an image of a joint deployment.
type app struct {
	ref   string
	ready corpus.Ready
}

// deployed is how a deployment went on a node that had nothing.
type deployed struct {
	ready []time.Duration // from the start of all pulls until the application answers
	bytes int64           // over the link, until everything is local
}

// deploy pulls images at once and starts each when its pull has returned.
func (w *world) deploy(name string, p *sandbox.Proxyd, apps ...app) deployed {
	w.t.Helper()
	n := w.node(sandbox.NodeConfig{Name: name, Proxies: []string{p.Address}})
	d := deployed{ready: make([]time.Duration, len(apps))}
	w.count()
	began := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, len(apps))
	for i, a := range apps {
		wg.Go(func() {
			if errs[i] = n.Pull(w.t.Context(), a.ref, "--snapshotter", starlight); errs[i] != nil {
				return
			}
			c, err := n.Run(w.t.Context(), sandbox.Run{Ref: a.ref, ID: fmt.Sprint("app", i), Snapshotter: starlight, Argv: a.ready.Argv})
			if err == nil {
				err = c.WaitReady(w.t.Context(), a.ready)
			}
			d.ready[i], errs[i] = time.Since(began), err
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			w.t.Fatalf("%s: %v", apps[i].ref, err)
		}
	}
	for _, a := range apps {
		n.wait(a.ref)
		if s := n.status1(a.ref); s.Mode != "delta" || s.ObjectsLocal != s.Objects || s.Objects == 0 {
			w.t.Errorf("got %+v, want progress of its own", s)
		}
	}
	d.bytes = w.counters().Down.Bytes
	if err := n.Close(); err != nil {
		w.t.Fatal(err)
	}
	return d
}

// Images that are pulled at once share what they have in common, and are ready when the
// slowest of them would be alone, not one after the other.
func TestImagesPulledTogetherAreReadyTogether(t *testing.T) {
	w := newWorld(t, lan)
	p := w.sameBytes()
	var apps []app
	for _, name := range []string{"redis", "tinyhttp", "express"}[:pick(testing.Short(), 2, 3)] {
		apps = append(apps, app{w.push(name, "v1"), image(t, name, "v1").Ready})
	}
	var refs []string
	for _, a := range apps {
		refs = append(refs, a.ref)
	}
	w.warm(p, refs...)
	link := slow
	link.Down = 40
	if err := w.Link.Set(link); err != nil {
		t.Fatal(err)
	}
	var sum, most time.Duration
	var bytes int64
	for i, a := range apps {
		alone := w.deploy(fmt.Sprint("alone", i), p, a)
		t.Logf("alone: %s %+v", a.ref, alone)
		sum, most, bytes = sum+alone.ready[0], max(most, alone.ready[0]), bytes+alone.bytes
	}
	together := w.deploy("together", p, apps...)
	t.Logf("together: %+v", together)
	if last := slices.Max(together.ready); last > (sum+most)/2+most/4 {
		t.Errorf("together all are ready after %v, alone the slowest after %v, one after the other after %v", last, most, sum)
	}
	if together.bytes > bytes*102/100 {
		t.Errorf("got %d bytes together, alone %d", together.bytes, bytes)
	}
}

func pick[T any](first bool, a, b T) T {
	if first {
		return a
	}
	return b
}

// Pulls that begin at once take a round trip, and not one after the other; each content
// comes once.
func TestPullsAtOnceAreOnePlan(t *testing.T) {
	w, p, n := accelerated(t, lan)
	shared := random(1, "shared", 300, 20_000)
	var refs []string
	for i := range 3 {
		refs = append(refs, w.pushWeird(weird.Files(fmt.Sprint("joint", i), shared, random(uint64(10+i), "own", 20, 20_000))))
	}
	w.warm(p, refs...)
	link := slow
	link.RTT = 300 * time.Millisecond
	if err := w.Link.Set(link); err != nil {
		t.Fatal(err)
	}
	w.count()
	began := time.Now()
	if out := n.ctr(append([]string{"starlight", "pull", "--plain-http"}, refs...)...); strings.Count(out, "ready after") != 3 {
		t.Errorf("got %q, want a line for each image", out)
	}
	took := time.Since(began)
	for _, ref := range refs {
		n.wait(ref)
	}
	c := w.counters()
	// 300 shared and 60 own contents, which do not compress.
	if want := int64(360 * 20_000); c.Down.Bytes > want*12/10 {
		t.Errorf("got %d bytes, want those of all contents once (%d)", c.Down.Bytes, want)
	}
	t.Logf("pulled in %v, %d round trips, %d bytes", took, c.RoundTrips, c.Down.Bytes)
	// Connect and ask: two, and the first of them on a warm connection one.
	if c.RoundTrips > 4 {
		t.Errorf("got %d round trips for three pulls at once, want 2 (and two more at most that run beside)", c.RoundTrips)
	}
	for i, ref := range refs {
		dir := n.mount(t, ref, starlight)
		for _, m := range []map[string]string{shared, random(uint64(10+i), "own", 20, 20_000)} {
			compareFiles(t, dir, m)
		}
	}
}

// Of an image that is pulled for several platforms each is a delta, and contents that
// they share come once.
func TestPlatformsShareContents(t *testing.T) {
	w, p, n := accelerated(t, lan)
	shared, amd, arm := random(1, "shared", 200, 20_000), random(2, "bin", 20, 20_000), random(3, "bin", 20, 20_000)
	ref := w.pushWeird(weird.Files("platforms", shared, amd).And("arm64", shared, arm))
	both := []string{"--platform", "linux/amd64", "--platform", "linux/arm64"}
	w.warm(p, ref)
	w.count()
	n.pull(ref, both...)
	n.wait(ref)
	c := w.counters()
	if want := int64(240 * 20_000); c.Down.Bytes > want*12/10 {
		t.Errorf("got %d bytes, want those of all contents once (%d)", c.Down.Bytes, want)
	}
	all := n.status(ref)
	if len(all) != 2 {
		t.Fatalf("got %+v, want a status of each platform", all)
	}
	for _, s := range all {
		if s.Mode != "delta" || !s.Complete || s.Objects != 220 {
			t.Errorf("got %+v, want a complete delta", s)
		}
	}
	for platform, own := range map[string]map[string]string{"linux/amd64": amd, "linux/arm64": arm} {
		dir := t.TempDir()
		n.ctr("image", "mount", "--snapshotter", starlight, "--platform", platform, ref, dir)
		t.Cleanup(func() {
			if _, err := n.Ctr(cleanupContext(t), "image", "unmount", "--rm", "--snapshotter", starlight, dir); err != nil {
				t.Error(err)
			}
		})
		compareFiles(t, dir, shared)
		compareFiles(t, dir, own)
	}
	if out := n.ctr("image", "check", "--snapshotter", starlight, "name=="+ref); !strings.Contains(out, "complete") {
		t.Errorf("image check: %q, want complete", out)
	}
	// Both outlive a restart and a garbage collection, and go with the image.
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := n.status(ref); len(again) != 2 {
		t.Errorf("after a restart got %+v", again)
	}
}

// sameBytes starts a proxyd that sends the same bytes for a content each time: nothing
// is compressed better meanwhile.
func (w *world) sameBytes() *sandbox.Proxyd {
	w.t.Helper()
	conf := filepath.Join(w.Dir, "proxyd.toml")
	if err := os.WriteFile(conf, []byte("precompress = false\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return w.proxyd("--config", conf)
}

// pushWeird pushes a hand-made image.
func (w *world) pushWeird(im weird.Image) string {
	w.t.Helper()
	layout := filepath.Join(w.Dir, "layouts", im.Name)
	if err := im.Write(layout); err != nil {
		w.t.Fatal(err)
	}
	ref, err := w.Push(w.t.Context(), layout, im.Name, weird.Tag)
	if err != nil {
		w.t.Fatal(err)
	}
	return ref
}

// random are n files of so many bytes that do not compress.
func random(seed uint64, dir string, n, size int) map[string]string {
	r := rand.NewChaCha8([32]byte{byte(seed)})
	files := map[string]string{}
	for i := range n {
		b := make([]byte, size)
		_, _ = r.Read(b) // never fails
		files[fmt.Sprintf("%s-%03d", dir, i)] = string(b)
	}
	return files
}

// compareFiles compares files below a directory with what they should be.
func compareFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s has other contents", name)
		}
	}
}
