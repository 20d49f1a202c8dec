package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
)

// fromJSON is the output of a command of ctr-starlight with --json.
func fromJSON[T any](n *node, args ...string) (v T) {
	n.t.Helper()
	out := n.ctr(append([]string{"starlight"}, append(args, "--json")...)...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		n.t.Fatalf("%q: %v: %s", args, err, out)
	}
	return v
}

// A node that knows no proxy is given one at run time, which indexes an image
// before its first pull; what the image leaves behind is counted, checked,
// repaired, and removed.
func TestNodeIsLookedAfter(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	n := w.node(sandbox.NodeConfig{})
	ref := w.push("tinyhttp", "v1")

	if out, err := n.Ctr(t.Context(), "starlight", "doctor", "--config", "/nonexistent"); err == nil || !strings.Contains(out, "no proxies are configured") {
		t.Errorf("doctor without proxies: %v: %s", err, out)
	}
	if out := n.ctr("starlight", "proxy", "add", p.Address); !strings.Contains(out, "address = \""+p.Address+"\"") {
		t.Errorf("proxy add: got %q, want the lines that keep it", out)
	}
	if out, err := n.Ctr(t.Context(), "starlight", "proxy", "add", "ftp://nowhere"); err == nil {
		t.Errorf("proxy add takes any address: %s", out)
	}
	if got := fromJSON[[]string](n, "notify", ref); len(got) != 1 || got[0] != p.Address {
		t.Errorf("notify: got %q, want %s", got, p.Address)
	}
	reads := func() (n int) {
		for line := range strings.Lines(w.Registry.Log().String()) {
			if strings.Contains(line, "method=GET") && strings.Contains(line, "/v2/tinyhttp/blobs/sha256") {
				n++
			}
		}
		return n
	}
	indexed := reads()
	if indexed == 0 {
		t.Error("notify made nobody read the image")
	}
	if out := n.ctr("starlight", "pull", "--wait", "--plain-http", ref); !strings.Contains(out, ref+" ready after") || !strings.Contains(out, "on the wire") {
		t.Errorf("pull: got %q, want what it took", out)
	}
	if got := fromJSON[[]status](n, "pull", "--plain-http", ref); len(got) != 1 || !got[0].Complete || got[0].Mode != "delta" {
		t.Errorf("pull --json: got %+v, want a complete delta", got)
	}
	if _, err := n.Ctr(t.Context(), "starlight", "pull", "--plain-http", w.Registry.Ref("no/such", "image")); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("pull of an unknown image: got %v", err)
	}
	if r := reads(); r != indexed {
		t.Errorf("got %d reads of blobs by the pull, want none after notify", r-indexed)
	}
	if s := n.status1(ref); s.Mode != "delta" {
		t.Fatalf("got %+v, want a delta", s)
	}
	if out := n.ctr("starlight", "doctor", "--config", "/nonexistent"); !strings.Contains(out, p.Address) {
		t.Errorf("doctor: got %s, want the proxy", out)
	}

	type usage struct {
		Category string `json:"category"`
		Path     string `json:"path"`
		Files    int64  `json:"files"`
		Bytes    int64  `json:"bytes"`
	}
	used := func() (objects usage) {
		for _, u := range fromJSON[[]usage](n, "df") {
			if u.Category == "objects" {
				objects = u
			}
		}
		return objects
	}
	objects := used()
	if want := n.status1(ref).Objects; objects.Files != want || objects.Bytes == 0 {
		t.Errorf("df: got %+v, want %d objects", objects, want)
	}

	type check struct {
		Problems []struct {
			Repaired bool `json:"repaired"`
		} `json:"problems"`
		Objects int64 `json:"objects"`
	}
	if c := fromJSON[check](n, "fsck"); len(c.Problems) != 0 || c.Objects != objects.Files {
		t.Errorf("fsck: got %+v, want %d objects and no problem", c, objects.Files)
	}
	var victim string
	if err := filepath.WalkDir(objects.Path, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && victim == "" {
			victim = path
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(victim, []byte("rot"), 0o400); err != nil {
		t.Fatal(err)
	}
	if out, err := n.Ctr(t.Context(), "starlight", "fsck"); err == nil || !strings.Contains(out, "1 problems, 0 repaired") {
		t.Errorf("fsck with a rotten object: %v: %s", err, out)
	}
	if c := fromJSON[check](n, "fsck", "--repair"); len(c.Problems) != 1 || !c.Problems[0].Repaired {
		t.Errorf("fsck --repair: got %+v", c)
	}
	n.wait(ref)
	if c := fromJSON[check](n, "fsck"); len(c.Problems) != 0 || c.Objects != objects.Files {
		t.Errorf("fsck after a repair: got %+v, want %d objects and no problem", c, objects.Files)
	}
	n.runReady(ref, "app", starlight, image(t, "tinyhttp", "v1").Ready)

	n.ctr("image", "rm", ref)
	n.ctr("starlight", "gc")
	if left := used(); left.Files != 0 {
		t.Errorf("df after gc: got %+v, want no objects", left)
	}
	if out := n.ctr("starlight", "proxy", "rm", p.Address); strings.Contains(out, "config") {
		t.Errorf("proxy rm: got %q for a proxy that is in no configuration", out)
	}
	if out := n.ctr("starlight", "proxy", "ls", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("proxy ls: got %s", out)
	}
}

// What delta says before a pull is what the pull then brings, for a node that has
// nothing and for one that has the version before; and it brings nothing itself.
func TestDeltaSaysWhatAPullBrings(t *testing.T) {
	w, _, n := accelerated(t, slow)
	v1, v2 := w.push("redis", "v1"), w.push("redis", "v2")
	type share struct {
		Objects   int64 `json:"objects"`
		Bytes     int64 `json:"bytes"`
		WireBytes int64 `json:"wireBytes"`
	}
	type delta struct {
		WireBytes     int64 `json:"wireBytes"`
		MostWireBytes int64 `json:"mostWireBytes"`
		PlainBytes    int64 `json:"plainBytes"`
		Total         share `json:"total"`
		Local         share `json:"local"`
		Patched       share `json:"patched"`
		New           share `json:"new"`
		Files         []struct {
			Path string `json:"path"`
		} `json:"files"`
	}
	w.count()
	update := fromJSON[delta](n, "delta", "--from", v1, v2)
	if c := w.counters(); c.Down.Bytes > 100_000 {
		t.Errorf("delta brought %d bytes", c.Down.Bytes)
	}
	for _, ref := range []string{v1, v2} {
		said := fromJSON[delta](n, "delta", ref)
		// Patches that proxyd has made better meanwhile, as somebody asked, are smaller.
		if ref == v2 && (said.Local != update.Local || said.WireBytes > update.WireBytes*12/10 || said.WireBytes < update.WireBytes/3) {
			t.Errorf("got %+v from the node, %+v from %s, which is all that it has", said, update, v1)
		}
		n.pull(ref)
		n.wait(ref)
		st := n.status1(ref)
		// A pull does not wait for patches that a loaded machine makes too late.
		if st.Objects != said.Total.Objects || st.WireBytes < said.WireBytes*8/10 || st.WireBytes > said.MostWireBytes*11/10 {
			t.Errorf("%s: the pull brought %d bytes, delta said %+v", ref, st.WireBytes, said)
		}
		t.Logf("%s: said %d to %d, brought %d bytes", ref, said.WireBytes, said.MostWireBytes, st.WireBytes)
	}
	if update.Patched.Objects == 0 || update.Local.Objects == 0 || update.WireBytes >= update.PlainBytes || len(update.Files) != 10 {
		t.Errorf("got %+v, want patches, local contents, and ten files", update)
	}
	if again := fromJSON[delta](n, "delta", v2); again.New.Objects+again.Patched.Objects != 0 || again.Local != again.Total {
		t.Errorf("after the pull: got %+v, want nothing to bring", again)
	}
}

// The configuration of a node is edited, taken in, and given back byte for byte.
func TestInstallConfiguresANode(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	n := w.node(sandbox.NodeConfig{})
	ref := w.push("tinyhttp", "v1")
	file := filepath.Join(n.Dir, "config.toml")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	restart := func() {
		t.Helper()
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	out := n.ctr("starlight", "install", "--config", file, "--proxy", p.Address, "--registry", "10.*", "--default-snapshotter", "--cri", "--yes")
	if !strings.Contains(out, "+  address = \""+p.Address+"\"") {
		t.Errorf("install: got %s, want the difference", out)
	}
	restart()
	if err := n.Pull(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if s := n.status1(ref); s.Mode != "delta" {
		t.Errorf("got %+v, want a delta", s)
	}
	if out, err := n.Ctr(t.Context(), "starlight", "doctor", "--config", file); strings.Contains(out, "does not use the snapshotter") {
		t.Errorf("doctor: %v: %s", err, out)
	}
	n.ctr("starlight", "uninstall", "--config", file, "--yes")
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("after uninstall: %v, %s", err, after)
	}
	restart()
	if out := n.ctr("starlight", "proxy", "ls", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("after uninstall there are proxies: %s", out)
	}
}

// Reset takes out what came through Starlight and nothing else, with containerd and
// without, and never from under a container.
func TestReset(t *testing.T) {
	w, _, n := accelerated(t, lan)
	v1, v2 := w.push("tinyhttp", "v1"), w.push("tinyhttp", "v2")
	ready := image(t, "tinyhttp", "v1").Ready
	run := func(ref, id, snapshotter string) func() {
		t.Helper()
		c, err := n.Run(t.Context(), sandbox.Run{Ref: ref, ID: id, Snapshotter: snapshotter, Argv: ready.Argv})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.WaitReady(t.Context(), ready); err != nil {
			t.Fatal(err)
		}
		return func() {
			t.Helper()
			if err := c.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	refuses := func(why string, flags ...string) {
		t.Helper()
		out, err := n.Ctr(t.Context(), append([]string{"starlight", "reset", "--yes"}, flags...)...)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("got %v, want %q: %s", err, why, out)
		}
	}
	root := filepath.Join(n.Root, "io.containerd.snapshotter.v1.starlight")
	n.pull(v1)
	n.wait(v1)
	n.ctr("image", "tag", v1, "other.example/name:1")
	n.ctr("-n", "second", "image", "pull", "--plain-http", "--snapshotter", starlight, v1)
	n.pull(v2)
	n.wait(v2)
	if err := n.Pull(t.Context(), v2, "--snapshotter", overlayfs); err != nil {
		t.Fatal(err)
	}
	app := run(v1, "app", starlight)
	refuses("container app in namespace default")
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	refuses("containers run from", "--root", root)
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	app()

	other := run(v2, "other", overlayfs)
	if out := n.ctr("starlight", "reset", "--dry-run"); strings.Count(out, "remove image") != 3 || !strings.Contains(out, "keep image "+v2) {
		t.Errorf("dry run: got %s, want three names of %s to be removed and %s to be kept", out, v1, v2)
	}
	if s := n.status(v1); len(s) != 2 {
		t.Errorf("a dry run has removed something: %+v", s)
	}
	n.ctr("starlight", "reset", "--yes")
	if out := n.ctr("image", "ls", "-q"); strings.TrimSpace(out) != v2 {
		t.Errorf("after reset there are the images %q, want %s", out, v2)
	}
	if out := n.ctr("-n", "second", "image", "ls", "-q"); strings.TrimSpace(out) != "" {
		t.Errorf("after reset the second namespace has %q", out)
	}
	other()
	n.ctr("starlight", "reset", "--yes")
	if out := n.ctr("snapshots", "--snapshotter", starlight, "ls"); strings.Count(out, "\n") > 1 {
		t.Errorf("after reset there are snapshots: %s", out)
	}
	n.pull(v1)
	n.wait(v1)
	n.runReady(v1, "again", starlight, ready)

	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	n.ctr("starlight", "reset", "--yes", "--root", root)
	if left, err := os.ReadDir(root); err == nil {
		t.Errorf("without containerd: %d entries are left", len(left))
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), root) {
		t.Errorf("there are mounts left (%v)", err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.ctr("image", "rm", "--sync", v1)
	n.pull(v1)
	n.wait(v1)
	n.runReady(v1, "anew", starlight, ready)
}
