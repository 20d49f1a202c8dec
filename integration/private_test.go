package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/integration/internal/registry"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Credentials reach proxyd and are tried upstream: the right ones give a delta,
// wrong ones nothing, though proxyd has the image.
func TestPrivateRegistries(t *testing.T) {
	for _, auth := range []registry.Auth{registry.Basic, registry.Token} {
		t.Run(auth.String(), func(t *testing.T) {
			w := newWorld(t, lan)
			r := w.private(auth, 5100, "tinyhttp", "v1")
			ref := r.Ref("secret/tinyhttp", "v1")
			p := w.proxydWith(sandbox.ProxydConfig{Registries: []string{r.Host}})
			n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}})
			good := registry.User + ":" + registry.Password

			n.pull(ref, "--user", good)
			if s := n.status1(ref); s.Mode != "delta" {
				t.Fatalf("got %+v with the right credentials, want a delta", s)
			}
			n.wait(ref)
			n.runReady(ref, "app", starlight, image(t, "tinyhttp", "v1").Ready)

			for _, bad := range [][]string{nil, {"--user", registry.User + ":wrong"}, {"--user", "mallory:" + registry.Password}} {
				other := w.node(sandbox.NodeConfig{Name: "other-" + nodeSuffix(bad), Proxies: []string{p.Address}})
				if err := other.Pull(t.Context(), ref, append([]string{"--snapshotter", starlight}, bad...)...); err == nil {
					t.Errorf("a pull with %q succeeds", bad)
				}
				if out := other.ctr("image", "ls", "-q"); strings.Contains(out, "secret") {
					t.Errorf("the image is there after a pull with %q", bad)
				}
			}
			askDirectly(t, w, p.Address, ref)
		})
	}
}

func nodeSuffix(flags []string) string {
	switch {
	case flags == nil:
		return "none"
	case strings.HasPrefix(flags[1], "mallory"):
		return "user"
	default:
		return "password"
	}
}

// askDirectly asks proxyd as a worker would that is not bound by a client.
func askDirectly(t *testing.T, w *world, proxyd, ref string) {
	t.Helper()
	for _, creds := range []*wire.Credentials{nil, {Username: registry.User, Secret: "wrong"}, {Secret: "identity"}} {
		body, encoding, err := wire.EncodeRequest(&wire.DeltaRequest{Ref: ref, Platform: "linux/amd64", Credentials: creds})
		if err != nil {
			t.Fatal(err)
		}
		code, answer := post(t, w.Link.Edge, proxyd+wire.RouteDelta, body, encoding)
		if code == 200 {
			t.Errorf("proxyd answers 200 to credentials %+v: %.100q", creds, answer)
		}
		if strings.Contains(answer, "sha256:") {
			t.Errorf("proxyd tells digests to credentials %+v: %q", creds, answer)
		}
	}
}

// certs is a directory with a hosts.toml for each registry of the world.
func (w *world) certs() string { return filepath.Join(w.Dir, "certs.d") }

func (w *world) plainHTTP(hosts ...string) {
	w.t.Helper()
	for _, h := range hosts {
		dir := filepath.Join(w.certs(), h)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("server = \"http://"+h+"\"\n"), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
}

// private starts a registry that wants credentials, and pushes versions of an image.
func (w *world) private(auth registry.Auth, port int, name string, tags ...string) *registry.Registry {
	w.t.Helper()
	r, err := registry.Start(w.t.Context(), w.Link.Cloud, registry.Config{
		Dir: filepath.Join(w.Dir, "private", auth.String()), Port: port, Auth: auth,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Closing(r)
	w.plainHTTP(r.Host)
	for _, tag := range tags {
		if _, err := r.Push(w.t.Context(), image(w.t, name, tag).Layout, "secret/"+name, tag); err != nil {
			w.t.Fatal(err)
		}
	}
	return r
}
