package integration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/integration/internal/registry"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// dribble makes the link so slow that whatever happens happens in mid stream.
func (w *world) dribble() {
	w.t.Helper()
	link := slow
	link.Down = 5
	if err := w.Link.Set(link); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) fast() {
	w.t.Helper()
	if err := w.Link.Set(lan); err != nil {
		w.t.Fatal(err)
	}
}

// readAll starts a container that reads every file of its root and then waits.
func (n *node) readAll(ref, id string, flags ...string) {
	n.t.Helper()
	n.ctr(append(append([]string{"run", "-d", "--net-host", "--snapshotter", starlight}, flags...), ref, id, "sh", "-c",
		"find / -xdev -type f -print0 | sort -z | xargs -0 cat | sha256sum > /sum && mv /sum /done && exec sleep 3600")...)
}

// sum is what a container of readAll has read in the end.
func (n *node) sum(id string) string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 3*time.Minute)
	defer cancel()
	out, err := n.Ctr(ctx, "tasks", "exec", "--exec-id", "sum", id, "sh", "-c", "while ! [ -e /done ]; do sleep 0.1; done; cat /done")
	if err != nil {
		n.t.Fatalf("container %s did not read everything: %v", id, err)
	}
	return out
}

// killLazy kills the process of the lazy file system as a crash would.
func (n *node) killLazy() {
	n.t.Helper()
	pids, err := n.LazyProcesses()
	if err != nil {
		n.t.Fatal(err)
	}
	if len(pids) == 0 {
		n.t.Fatal("there is no process of the lazy file system")
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			n.t.Fatal(err)
		}
	}
}

func (n *node) start() {
	n.t.Helper()
	if err := n.Start(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// wrongObjects hashes all complete objects of a node.
func (n *node) wrongObjects() (all, wrong int) {
	n.t.Helper()
	dir := filepath.Join(n.Snapshotter(), "objects")
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		all++
		if want := filepath.Base(filepath.Dir(path)) + filepath.Base(path); hex.EncodeToString(h.Sum(nil)) != want {
			n.t.Errorf("object %s has wrong content", want)
			wrong++
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return all, wrong
}

// clean checks that ctr-starlight finds nothing wrong on the disk.
func (n *node) clean() {
	n.t.Helper()
	if out, err := n.Ctr(n.t.Context(), "starlight", "fsck"); err != nil {
		n.t.Fatalf("fsck: %v: %s", err, out)
	}
}

// Whichever of its processes dies under a container that waits for bytes, it goes on
// with the right ones.
func TestReaderOutlives(t *testing.T) {
	for name, strike := range map[string]func(*world, *node){
		"the lazy file system": func(_ *world, n *node) { n.killLazy() },
		"containerd":           func(_ *world, n *node) { n.Kill(); n.start() },
		"a restart": func(_ *world, n *node) {
			if err := n.Stop(); err != nil {
				n.t.Fatal(err)
			}
			n.start()
		},
		"an upgrade": func(w *world, n *node) {
			if err := n.Stop(); err != nil {
				n.t.Fatal(err)
			}
			n.Use(w.copied())
			n.start()
		},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name == "a restart" { // the upgrade has one, too
				t.Skip("long")
			}
			w, p, n := accelerated(t, slow)
			ref := w.push("redis", "v1")
			w.warm(p, ref)
			w.dribble()
			n.pull(ref)
			n.readAll(ref, "reader")
			strike(w, n)
			if s := n.status1(ref); s.Complete {
				t.Error("everything was there already: the test shows nothing")
			}
			w.fast()
			got := n.sum("reader")
			n.wait(ref)
			n.readAll(ref, "fresh")
			if want := n.sum("fresh"); got != want {
				t.Errorf("the container read %s, another one %s", got, want)
			}
			if pids, err := n.LazyProcesses(); err != nil || len(pids) != 1 {
				t.Errorf("processes of the lazy file system: %v, %v, want one", pids, err)
			}
			n.unmounted(ref)
		})
	}
}

// copied are the binaries, with another file of the same containerd.
func (w *world) copied() tools.Binaries {
	w.t.Helper()
	b, err := os.ReadFile(w.bin.Containerd)
	if err != nil {
		w.t.Fatal(err)
	}
	next := w.bin
	next.Containerd = filepath.Join(w.t.TempDir(), "containerd")
	if err := os.WriteFile(next.Containerd, b, 0o755); err != nil {
		w.t.Fatal(err)
	}
	return next
}

// containerd and the lazy file system die at once, as by the OOM killer, which takes
// the FUSE connection away from running containers. They can read everything again as
// soon as it has come, and new processes of theirs work.
func TestBothProcessesDie(t *testing.T) {
	w, p, n := accelerated(t, slow)
	ref := w.push("redis", "v1")
	w.warm(p, ref)
	n.pull(ref)
	// It has opened some of its files in the lazy file system.
	n.ctr("run", "-d", "--net-host", "--snapshotter", starlight, ref, "old", "sh", "-c", "touch /up; sleep 3600; true")
	// What its processes have mapped there has to be in memory: for those files the
	// kernel has no other place.
	n.ctr("tasks", "exec", "--exec-id", "up", "old", "sh", "-c",
		"while ! [ -e /up ]; do sleep 0.1; done; cat $(cat /proc/[0-9]*/maps | sed -n 's|.* /|/|p' | sort -u) >/dev/null")
	w.dribble()
	n.Kill()
	n.killLazy()
	w.fast()
	n.start()
	n.wait(ref)
	// xargs fails if a file cannot be read.
	const read = "find /usr -xdev -type f -print0 | sort -z | xargs -0 cat > /dev/null && find /usr -xdev -type f -print0 | sort -z | xargs -0 cat | sha256sum"
	got := n.ctr("tasks", "exec", "--exec-id", "x", "old", "sh", "-c", read)
	if want := n.output(ref, "fresh", "sh", "-c", read); got != want {
		t.Errorf("the container reads %q, another one %q", got, want)
	}
	// Its task starts again on a good root.
	n.ctr("tasks", "kill", "-s", "SIGKILL", "old")
	n.ctr("tasks", "rm", "-f", "old")
	n.ctr("tasks", "start", "-d", "old")
	n.unmounted(ref)
}

// An image of a private registry goes on after a restart, when nobody has given the
// credentials again.
func TestPrivateImageGoesOnAfterRestart(t *testing.T) {
	w := newWorld(t, lan)
	r, err := registry.Start(t.Context(), w.Link.Cloud, registry.Config{
		Dir: filepath.Join(w.Dir, "private"), Port: 5100, Auth: registry.Token,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Closing(r)
	if _, err := r.Push(t.Context(), image(t, "redis", "v1").Layout, "secret/app", "v1"); err != nil {
		t.Fatal(err)
	}
	ref := r.Ref("secret/app", "v1")
	user := registry.User + ":" + registry.Password
	p := w.proxydWith(sandbox.ProxydConfig{Registries: []string{r.Host}})
	warm := w.node(sandbox.NodeConfig{Name: "warm", Proxies: []string{p.Address}})
	warm.pull(ref, "--user", user)
	warm.wait(ref)
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}})
	w.dribble()
	n.pull(ref, "--user", user)
	n.Kill()
	if err := r.Close(); err != nil { // so that only the ticket can be what helps
		t.Fatal(err)
	}
	w.fast()
	n.start()
	n.wait(ref)
	if all, _ := n.wrongObjects(); all == 0 {
		t.Error("no objects")
	}
	b, err := os.ReadFile(filepath.Join(n.Snapshotter(), "state.db"))
	if err != nil || strings.Contains(string(b), registry.Password) {
		t.Errorf("the password is in the state: %v", err)
	}
	if st, err := os.Stat(filepath.Join(n.Snapshotter(), "state.db")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("state: %v, %v", st.Mode(), err)
	}
}

// A proxyd that lost its data, and another proxyd, finish what one has begun.
func TestAnotherProxyFinishes(t *testing.T) {
	t.Run("with nothing in it", func(t *testing.T) {
		w, p, n := accelerated(t, slow)
		ref := w.push("redis", "v1")
		w.warm(p, ref)
		w.dribble()
		n.pull(ref)
		p.Kill()
		w.fast()
		w.proxydWith(sandbox.ProxydConfig{Dir: filepath.Join(w.Dir, "empty")})
		n.wait(ref)
		n.wrongObjects()
	})
	t.Run("the next in the list", func(t *testing.T) {
		w := newWorld(t, slow)
		first := w.proxyd()
		second := w.proxydWith(sandbox.ProxydConfig{Dir: filepath.Join(w.Dir, "second"), Port: 8092})
		ref := w.push("redis", "v1")
		w.warm(first, ref)
		w.warm2(second, ref)
		n := w.node(sandbox.NodeConfig{Proxies: []string{first.Address, second.Address}})
		w.dribble()
		n.pull(ref)
		first.Kill()
		w.fast()
		n.wait(ref)
		n.wrongObjects()
		if l := w.Registry.Log().String(); strings.Count(l, "GET /v2/redis/blobs") > 40 {
			t.Error("the registry was asked for layers though there was a second proxy")
		}
	})
}

// warm2 is warm for a second proxyd.
func (w *world) warm2(p *sandbox.Proxyd, ref string) {
	w.t.Helper()
	n := w.node(sandbox.NodeConfig{Name: "warm2", Proxies: []string{p.Address}})
	n.pull(ref)
	n.wait(ref)
	if err := n.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// Nothing answers any more: reads fail with EIO after a while, the status says what is
// missing and why, and all heals when anything comes back.
func TestEverythingIsGoneAndComesBack(t *testing.T) {
	w := newWorld(t, slow)
	p := w.proxyd()
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}, Engine: "  read_timeout = \"3s\"\n  stream_timeout = \"2s\"\n"})
	ref := w.push("redis", "v1")
	w.warm(p, ref)
	w.dribble()
	n.pull(ref)
	if err := w.Link.Cut(true); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(w.Dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	n.ctr("image", "mount", "--snapshotter", starlight, ref, root)
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			_, err = os.ReadFile(path)
		}
		return err
	})
	if !errors.Is(err, unix.EIO) {
		t.Errorf("reading what cannot come: got %v, want EIO", err)
	}
	s := n.status1(ref)
	if s.Complete || s.ObjectsLocal >= s.Objects || s.Reason == "" {
		t.Errorf("got %+v, want what is missing, and why", s)
	}
	if err := w.Link.Cut(false); err != nil {
		t.Fatal(err)
	}
	w.fast()
	n.wait(ref)
	n.wrongObjects()
	n.readAll(ref, "fresh")
	n.sum("fresh")
}

// The machine is started again without a network: what is complete runs, what is not
// goes on when the network is back, and nothing of the old mounts is in the way.
func TestReboot(t *testing.T) {
	w := newWorld(t, slow)
	p := w.proxyd()
	whole, part := w.push("tinyhttp", "v1"), w.push("redis", "v1")
	w.ingest(p, whole, part)
	disk, err := w.NewDisk("node", 1024)
	if err != nil {
		t.Skip("no file system to cut the power of:", err)
	}
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}})
	ready := image(t, "tinyhttp", "v1").Ready
	n.pull(whole)
	n.wait(whole)
	w.dribble()
	n.pull(part)
	run := t.TempDir()
	n.readAll(part, "reader", "--runc-root", run)
	if err := w.Link.Cut(true); err != nil {
		t.Fatal(err)
	}
	if err := n.PowerCut(disk); err != nil {
		t.Fatal(err)
	}
	// What is below /run is gone after a reboot.
	for _, dir := range []string{filepath.Join(run, "default"), filepath.Join(n.Dir, "state")} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	n.start()
	n.runReady(whole, "offline", starlight, ready)
	if s := n.status1(whole); !s.Complete {
		t.Errorf("got %+v, want what was complete", s)
	}
	if s := n.status1(part); s.Complete {
		t.Errorf("got %+v: the test shows nothing", s)
	}
	if err := w.Link.Cut(false); err != nil {
		t.Fatal(err)
	}
	w.fast()
	n.ctr("tasks", "start", "-d", "reader")
	got := n.sum("reader")
	n.wait(part)
	n.clean()
	n.readAll(part, "fresh")
	if want := n.sum("fresh"); got != want {
		t.Errorf("the container read %s, another one %s", got, want)
	}
	n.unmounted(whole, part)
}

// unmounted removes all containers and some images, after which nothing may be mounted
// any more but the lazy file system.
func (n *node) unmounted(refs ...string) {
	n.t.Helper()
	for id := range strings.FieldsSeq(n.ctr("containers", "ls", "-q")) {
		if err := n.RemoveContainer(n.t.Context(), "default", id); err != nil {
			n.t.Error(err)
		}
	}
	for _, ref := range refs {
		n.ctr("image", "rm", "--sync", ref)
	}
	mounts, err := n.Mounts()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, m := range mounts {
		if m != n.Dir && m != filepath.Join(n.Snapshotter(), "lazy") {
			n.t.Errorf("%s is still mounted", m)
		}
	}
	if strings.Contains(n.Log(), "device or resource busy") {
		n.t.Error("something was busy when it was unmounted or removed")
	}
}
