package integration

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/registry"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// nerdctl is the nerdctl of one user of a node.
type nerdctl struct {
	n    *node
	w    *world
	bin  string
	home string // with the docker config of this user
}

func (w *world) nerdctl(n *node, user string) *nerdctl {
	w.t.Helper()
	bin, err := tools.Nerdctl(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	home := filepath.Join(w.Dir, "home-"+user)
	if err := os.MkdirAll(home, 0o700); err != nil {
		w.t.Fatal(err)
	}
	return &nerdctl{n: n, w: w, bin: bin, home: home}
}

// try runs nerdctl with the snapshotter starlight, and with registries that
// hosts.toml of the world knows as plain HTTP.
func (c *nerdctl) try(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.bin, append([]string{
		"--address", c.n.Socket, "--snapshotter", starlight, "--cgroup-manager", "cgroupfs",
		"--data-root", filepath.Join(c.n.Root, "nerdctl"), "--hosts-dir", c.w.certs(),
	}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+c.home, "DOCKER_CONFIG="+c.home, "NERDCTL_TOML="+os.DevNull)
	return process.Run(c.w.Link.Edge, cmd)
}

func (c *nerdctl) run(args ...string) string {
	c.n.t.Helper()
	out, err := c.try(c.n.t.Context(), args...)
	if err != nil {
		c.n.t.Fatal(err)
	}
	return out
}

// What "nerdctl login" writes to the docker config of one user reaches proxyd and
// the registry, and serves nobody else on the node.
func TestNerdctlLogin(t *testing.T) {
	for _, auth := range []registry.Auth{registry.Basic, registry.Token} {
		t.Run(auth.String(), func(t *testing.T) {
			w := newWorld(t, lan)
			r := w.private(auth, 5100, "tinyhttp", "v1")
			ref := r.Ref("secret/tinyhttp", "v1")
			p := w.proxydWith(sandbox.ProxydConfig{Registries: []string{r.Host}})
			n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}})
			alice, mallory := w.nerdctl(n, "alice"), w.nerdctl(n, "mallory")

			if _, err := alice.try(t.Context(), "login", "-u", registry.User, "-p", "wrong", r.Host); err == nil {
				t.Fatal("a login with a wrong password succeeds: the registry is open")
			}
			alice.run("login", "-u", registry.User, "-p", registry.Password, r.Host)
			alice.run("pull", ref)
			if s := n.status1(ref); s.Mode != "delta" {
				t.Fatalf("got %+v after a login, want a delta", s)
			}
			n.wait(ref)
			n.runReady(ref, "app", starlight, image(t, "tinyhttp", "v1").Ready)
			if _, err := mallory.try(t.Context(), "-n", "hers", "pull", ref); err == nil {
				t.Error("a pull of another user, who has not logged in, succeeds")
			}
			alice.run("logout", r.Host)
			if _, err := alice.try(t.Context(), "-n", "other", "pull", ref); err == nil {
				t.Error("a pull after the logout succeeds")
			}
			if out := n.Log() + p.Log.String(); strings.Contains(out, registry.Password) {
				t.Error("the password is in a log")
			}
		})
	}
}

// What people do with nerdctl all day, on an image of which only a part is here.
func TestNerdctl(t *testing.T) {
	w, p, n := accelerated(t, lan)
	w.plainHTTP(w.Registry.Host)
	v1, v2 := w.push("redis", "v1"), w.push("redis", "v2")
	w.warm(p, v1, v2)
	c := w.nerdctl(n, "user")

	// Started without a pull, while most is still on the way, and looked into.
	link := slow
	if err := w.Link.Set(link); err != nil {
		t.Fatal(err)
	}
	c.run("run", "-d", "--name", "app", "--net", "host", v1)
	if s := n.status1(v1); s.Mode != "delta" {
		t.Fatalf("got %+v, want a delta", s)
	}
	if out := c.run("exec", "app", "sh", "-c", "rm /usr/bin/redis-benchmark; echo mine > /mine; md5sum /usr/bin/redis-server"); !strings.Contains(out, "redis-server") {
		t.Errorf("exec: got %q", out)
	}
	if err := w.Link.Set(lan); err != nil {
		t.Fatal(err)
	}
	var inspected []struct {
		State  struct{ Running bool }
		Driver string
	}
	if err := json.Unmarshal([]byte(c.run("inspect", "app")), &inspected); err != nil {
		t.Fatal(err)
	}
	if len(inspected) != 1 || !inspected[0].State.Running || inspected[0].Driver != starlight {
		t.Errorf("inspect: got %+v, want a container that runs on starlight", inspected)
	}

	// An update is a delta, and what is removed does not pull the rest away with it.
	n.wait(v1)
	w.count()
	c.run("pull", v2)
	n.wait(v2)
	if got, fresh := w.counters().Down.Bytes, image(t, "redis", "v1").Gzip; got > fresh/4 {
		t.Errorf("got %d bytes for the update, want less than a quarter of the layers (%d)", got, fresh)
	}

	t.Run("commit and push", func(t *testing.T) { commitAndPush(t, w, c) })
	c.run("rm", "-f", "app")
	t.Run("save and load", func(t *testing.T) { saveAndLoad(t, w, c, v2) })
	t.Run("convert", func(t *testing.T) { convert(t, w, c, v2) })
	t.Run("remove", func(t *testing.T) {
		c.run("rmi", v1)
		if out := c.run("images", "-q", v1); strings.TrimSpace(out) != "" {
			t.Errorf("got image %q after rmi", out)
		}
		if out := c.run("run", "--rm", "--net", "none", v2, "redis-server", "--version"); !strings.Contains(out, "Redis server") {
			t.Errorf("got %q of v2 after v1 was removed", out)
		}
	})
}

// A commit holds what the container has changed, and its push sends nothing that
// the registry has.
func commitAndPush(t *testing.T, w *world, c *nerdctl) {
	mine := w.Registry.Ref("redis", "mine")
	c.run("commit", "app", mine)
	if out := c.run("run", "--rm", "--net", "none", mine, "sh", "-c", "cat /mine; ls /usr/bin/redis-benchmark || true"); out != "mine\n" {
		t.Errorf("got %q of the commit, want the file that was made and not the one that was removed", out)
	}
	_, base := w.manifestOf("redis", "v1")
	before := w.Registry.Log().String()
	w.count()
	c.run("push", mine)
	link := w.counters()
	_, layers := w.manifestOf("redis", "mine")
	if len(layers) != len(base)+1 || !slices.Equal(layers[:len(base)], base) {
		t.Errorf("got layers %q in the registry, want those of v1 (%q) and one more", layers, base)
	}
	if link.Up.Bytes > 1<<20 || link.Down.Bytes > 1<<20 {
		t.Errorf("got %d bytes up and %d down for the push of a small layer", link.Up.Bytes, link.Down.Bytes)
	}
	log := strings.TrimPrefix(w.Registry.Log().String(), before)
	if uploads := strings.Count(log, `"POST /v2/redis/blobs/uploads/`); uploads != 2 {
		t.Errorf("got %d uploads of blobs, want layer and config", uploads)
	}

	// Under another name, in a registry that does not have them, layers arrive as they were.
	copied := w.Registry.Ref("copy/redis", "v1")
	c.run("tag", w.Registry.Ref("redis", "v1"), copied)
	c.run("push", copied)
	want, _ := w.manifestOf("redis", "v1")
	if got, _ := w.manifestOf("copy/redis", "v1"); got != want {
		t.Errorf("got %s after tag and push, want %s as in the original", got, want)
	}
}

func saveAndLoad(t *testing.T, w *world, c *nerdctl, ref string) {
	want := c.n.imageTarget(ref)
	tar := filepath.Join(w.Dir, "save.tar")
	c.run("save", "-o", tar, ref)
	other := w.nerdctl(&node{w.node(sandbox.NodeConfig{Name: "other"}).Node, t}, "other")
	other.run("load", "-i", tar)
	if got := other.n.imageTarget(ref); got != want {
		t.Errorf("got target %s after load, want %s", got, want)
	}
	if out := other.run("run", "--rm", "--net", "none", ref, "redis-server", "--version"); !strings.Contains(out, "Redis server") {
		t.Errorf("got %q from the loaded image", out)
	}
}

// Converters read the layers, which are not here as blobs.
func convert(t *testing.T, w *world, c *nerdctl, ref string) {
	for _, format := range []string{"--zstd", "--estargz"} {
		dst := w.Registry.Ref("redis", strings.TrimPrefix(format, "--"))
		c.run("image", "convert", format, "--oci", ref, dst)
		if out := c.run("run", "--rm", "--net", "none", dst, "redis-server", "--version"); !strings.Contains(out, "Redis server") {
			t.Errorf("%s: got %q from the converted image", format, out)
		}
	}
}
