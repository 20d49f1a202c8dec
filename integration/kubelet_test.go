package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/registry"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// A real kubelet, without an API server, on a node whose containerd has a small disk
// of its own: it runs static pods of private registries, updates one, and evicts
// images when the disk fills up.
func TestKubelet(t *testing.T) {
	if os.Getenv("STARLIGHT_KUBELET") == "" {
		t.Skip("a kubelet takes very long to build: \"make test-kubelet\" runs this")
	}
	bin, err := tools.Kubelet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, lan)
	token := w.private(registry.Token, 5100, "redis", "v1", "v2")
	basic := w.private(registry.Basic, 5200, "tinyhttp", "v1")
	w.plainHTTP(w.Registry.Host)
	p := w.proxydWith(sandbox.ProxydConfig{Registries: []string{w.Registry.Host, token.Host, basic.Host}})
	w.disk("node/root", 640<<20)
	n := w.node(sandbox.NodeConfig{CRI: true, Proxies: []string{p.Address}, Config: w.criConfig(w.push("pause", "v1"))})

	k, err := w.NewKubelet(n.Node, sandbox.KubeletConfig{Binary: bin, Args: credentialProvider(t, w.Dir, basic.Host)})
	if err != nil {
		t.Fatal(err)
	}
	dockerConfig(t, k.Root, token.Host)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the kubelet:\n%s", tail(k.AllLogs(), 200))
		}
	})
	c := &cluster{k, n, t}
	c.start(nil)

	v1, v2, web := token.Ref("secret/redis", "v1"), token.Ref("secret/redis", "v2"), basic.Ref("secret/tinyhttp", "v1")
	c.apply("app", v1)
	c.apply("web", web)
	c.running("app", v1)
	c.running("web", web)
	for _, ref := range []string{v1, web} {
		if s := n.status1(ref); s.Mode != "delta" || s.Namespace != "k8s.io" {
			t.Errorf("got %+v, want a delta in k8s.io", s)
		}
		n.wait(ref)
	}

	w.count()
	c.apply("app", v2)
	c.running("app", v2)
	n.wait(v2)
	if got, fresh := w.counters().Down.Bytes, image(t, "redis", "v1").Gzip; got > fresh/4 {
		t.Errorf("got %d bytes for the update of the pod, want less than a quarter of the layers (%d)", got, fresh)
	}
	if s := n.status1(v2); s.Mode != "delta" || !s.Complete {
		t.Errorf("got %+v, want a complete delta", s)
	}

	c.evict(v1, v2, time.Minute, map[string]any{"evictionHard": map[string]string{"imagefs.available": "20%"}})
	c.apply("app", v1)
	c.running("app", v1)
	c.apply("app", v2)
	c.running("app", v2)
	// The first round of image GC comes before the kubelet knows the disk, the second
	// five minutes later.
	c.evict(v1, v2, 8*time.Minute, map[string]any{"imageGCHighThresholdPercent": 80, "imageGCLowThresholdPercent": 75})
}

// evict fills the disk until the kubelet has to remove the image that no pod uses.
func (c *cluster) evict(unused, used string, within time.Duration, settings map[string]any) {
	t := c.t
	t.Helper()
	c.agree()
	before := diskOf(t, c.n.Root)
	restarts := c.pod("app").restarts
	// A little less than the fifth that is to be free, so that what the old version
	// has for itself is enough, and no pod needs to go.
	fill := before.available - before.capacity/5 + 4<<20
	filler := filepath.Join(c.n.Root, "filler")
	if _, err := process.Run(nil, exec.CommandContext(t.Context(), "fallocate", "-l", fmt.Sprint(fill), filler)); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	full := diskOf(t, c.n.Root)
	c.start(settings)
	eventually(t, within, func() error {
		if images := c.n.ctr("-n", "k8s.io", "image", "ls", "-q"); strings.Contains(images, unused) {
			return fmt.Errorf("%s is still there: %s", unused, images)
		}
		if d := diskOf(t, c.n.Root); d.available <= full.available {
			return fmt.Errorf("got %d bytes free after the eviction of an image, and %d before", d.available, full.available)
		}
		return nil
	})
	c.agree()
	// What pods use is still there, and they have not noticed.
	c.running("app", used)
	if got := c.pod("app").restarts; got != restarts {
		t.Errorf("got %d restarts of the pod, want %d", got, restarts)
	}
	if images := c.n.ctr("-n", "k8s.io", "image", "ls", "-q"); !strings.Contains(images, "/pause:v1") {
		t.Errorf("got images %q, want the one of the sandboxes", images)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
}

// cluster is a kubelet that fails its test instead of returning errors.
type cluster struct {
	*sandbox.Kubelet
	n *node
	t *testing.T
}

func (c *cluster) start(settings map[string]any) {
	c.t.Helper()
	if err := c.Start(c.t.Context(), settings); err != nil {
		c.t.Fatal(err)
	}
}

// apply writes a static pod that needs no network plugin.
func (c *cluster) apply(name, ref string) {
	c.t.Helper()
	err := c.Apply(name, map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name, "namespace": "default"},
		"spec": map[string]any{
			"hostNetwork": true, "terminationGracePeriodSeconds": 1,
			"containers": []any{map[string]any{"name": name, "image": ref}},
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

type pod struct {
	image    string
	running  bool
	restarts int
	status   string // as JSON, for messages
}

// pod is what the kubelet says of a static pod.
func (c *cluster) pod(name string) pod {
	c.t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct {
				Containers []struct{ Image string }
			}
			Status json.RawMessage
		}
	}
	if err := c.Get(c.t.Context(), "/pods", &list); err != nil {
		c.t.Fatal(err)
	}
	for _, i := range list.Items {
		if i.Metadata.Name != name+"-node" {
			continue
		}
		p := pod{status: string(i.Status)}
		var status struct {
			ContainerStatuses []struct {
				Image        string
				RestartCount int
				State        struct{ Running *struct{} }
			}
		}
		if err := json.Unmarshal(i.Status, &status); err != nil {
			c.t.Fatal(err)
		}
		if s := status.ContainerStatuses; len(s) == 1 {
			p.image, p.running, p.restarts = s[0].Image, s[0].State.Running != nil, s[0].RestartCount
		}
		return p
	}
	return pod{}
}

// running waits until a pod runs an image.
func (c *cluster) running(name, ref string) {
	c.t.Helper()
	eventually(c.t, 3*time.Minute, func() error {
		if p := c.pod(name); !p.running || p.image != ref {
			return fmt.Errorf("pod %s does not run %s: %s", name, ref, p.status)
		}
		return nil
	})
}

// agree waits until the kubelet says of containerd's disk what the disk says, and
// knows what images take of it.
func (c *cluster) agree() {
	c.t.Helper()
	eventually(c.t, time.Minute, func() error {
		var s struct {
			Node struct {
				Runtime struct {
					ImageFs struct{ CapacityBytes, AvailableBytes, UsedBytes int64 }
				}
			}
		}
		if err := c.Get(c.t.Context(), "/stats/summary", &s); err != nil {
			return err
		}
		got, want := s.Node.Runtime.ImageFs, diskOf(c.t, c.n.Root)
		const slack = 4 << 20 // containerd writes meanwhile
		if got.CapacityBytes != want.capacity || got.AvailableBytes < want.available-slack || got.AvailableBytes > want.available+slack {
			return fmt.Errorf("the kubelet sees %+v, the disk has %+v", got, want)
		}
		if got.UsedBytes <= 0 || got.UsedBytes > want.capacity-want.available+slack {
			return fmt.Errorf("the kubelet sees %d bytes of images on a disk with %+v", got.UsedBytes, want)
		}
		return nil
	})
}

type disk struct{ capacity, available int64 }

func diskOf(t *testing.T, dir string) disk {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	return disk{int64(s.Blocks) * s.Bsize, int64(s.Bavail) * s.Bsize}
}

// disk mounts a new file system at a directory of the world.
func (w *world) disk(name string, size int64) {
	w.t.Helper()
	dir := filepath.Join(w.Dir, name)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		w.t.Fatal(err)
	}
	file := dir + ".img"
	for _, c := range [][]string{
		{"truncate", "-s", fmt.Sprint(size), file},
		{"mkfs.ext4", "-q", "-m", "0", file},
		{"mount", "-o", "loop", file, dir},
	} {
		if _, err := process.Run(nil, exec.CommandContext(w.t.Context(), c[0], c[1:]...)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// dockerConfig writes the credentials of a registry as docker login does.
func dockerConfig(t *testing.T, dir, host string) {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(registry.User + ":" + registry.Password))
	b, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": auth}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// credentialProvider makes a plugin that knows the credentials of a registry, and
// returns the flags with which a kubelet asks it.
func credentialProvider(t *testing.T, dir, host string) []string {
	t.Helper()
	const api = "credentialprovider.kubelet.k8s.io/v1"
	answer, err := json.Marshal(map[string]any{
		"kind": "CredentialProviderResponse", "apiVersion": api, "cacheKeyType": "Registry",
		"auth": map[string]any{host: map[string]string{"username": registry.User, "password": registry.Password}},
	})
	if err != nil {
		t.Fatal(err)
	}
	conf, err := json.Marshal(map[string]any{
		"kind": "CredentialProviderConfig", "apiVersion": "kubelet.config.k8s.io/v1",
		"providers": []any{map[string]any{
			"name": "provider", "apiVersion": api, "matchImages": []string{host}, "defaultCacheDuration": "1h",
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "credential-providers")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\ncat >/dev/null\necho '" + string(answer) + "'\n"
	if err := os.WriteFile(filepath.Join(bin, "provider"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "credential-providers.yaml")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--image-credential-provider-config", file, "--image-credential-provider-bin-dir", bin}
}

// eventually waits until something holds.
func eventually(t *testing.T, within time.Duration, holds func() error) {
	t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-t.Context().Done():
			t.Fatal(err)
		case <-tick.C:
		}
	}
}
