package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// criNode is a node as a kubelet sees it.
type criNode struct {
	*node
	images runtime.ImageServiceClient
	pods   runtime.RuntimeServiceClient
	logs   string
}

// criNode starts a node with CRI. Keys are further lines of its images section.
func (w *world) criNode(keys, pause string, proxies ...string) *criNode {
	w.t.Helper()
	certs, cni := filepath.Join(w.Dir, "cri-certs"), filepath.Join(w.Dir, "cni")
	write := func(path, text string, mode os.FileMode) {
		w.t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			w.t.Fatal(err)
		}
	}
	write(filepath.Join(certs, w.Registry.Host, "hosts.toml"), "server = \"http://"+w.Registry.Host+"\"\n", 0o644)
	// Pods get a network namespace, and an address that nobody uses.
	write(filepath.Join(cni, "bin", "alone"), `#!/bin/sh
case "$CNI_COMMAND" in
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"10.99.0.2/24","interface":0}]}' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
*) echo '{}' ;;
esac
`, 0o755)
	write(filepath.Join(cni, "conf", "alone.conflist"), `{"cniVersion":"1.0.0","name":"alone","plugins":[{"type":"alone"}]}`, 0o644)
	n := w.node(sandbox.NodeConfig{CRI: true, Proxies: proxies, Config: `
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "starlight"
` + keys + `
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "` + pause + `"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "` + certs + `"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["` + filepath.Join(cni, "bin") + `"]
    conf_dir = "` + filepath.Join(cni, "conf") + `"
    use_internal_loopback = true
`})
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return &criNode{n, runtime.NewImageServiceClient(conn), runtime.NewRuntimeServiceClient(conn), filepath.Join(w.Dir, "pod-logs")}
}

func (n *criNode) pullImage(ref string) string {
	n.t.Helper()
	r, err := n.images.PullImage(n.t.Context(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.GetImageRef()
}

// pod runs a pod, and one container in it, and returns how to run commands there.
func (n *criNode) pod(name, ref string, userns bool, argv ...string) (exec func(argv ...string) string, remove func()) {
	n.t.Helper()
	return n.labelled(name, ref, nil, userns, argv...)
}

// labelled is pod with labels of the pod.
func (n *criNode) labelled(name, ref string, labels map[string]string, userns bool, argv ...string) (exec func(argv ...string) string, remove func()) {
	n.t.Helper()
	ctx := n.t.Context()
	ns := &runtime.NamespaceOption{Network: runtime.NamespaceMode_POD, Pid: runtime.NamespaceMode_CONTAINER}
	if userns {
		ids := []*runtime.IDMapping{{HostId: 200000, ContainerId: 0, Length: 65536}}
		ns.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	pod := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		LogDirectory: n.logs,
		Labels:       labels,
		Linux: &runtime.LinuxPodSandboxConfig{
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: ns},
		},
	}
	sb, err := n.pods.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: pod})
	if err != nil {
		n.t.Fatal(err)
	}
	remove = func() {
		ctx := cleanupContext(n.t)
		if _, err := n.pods.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: sb.PodSandboxId}); err != nil {
			n.t.Error(err)
		}
		if _, err := n.pods.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: sb.PodSandboxId}); err != nil {
			n.t.Error(err)
		}
	}
	c, err := n.pods.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: sb.PodSandboxId, SandboxConfig: pod,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: name}, Image: &runtime.ImageSpec{Image: ref}, Command: argv,
			LogPath: name + ".log",
			Linux: &runtime.LinuxContainerConfig{
				SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: ns},
			},
		},
	})
	if err == nil {
		_, err = n.pods.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.GetContainerId()})
	}
	if err != nil {
		remove()
		n.t.Fatal(err)
	}
	return func(argv ...string) string {
		n.t.Helper()
		r, err := n.pods.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: argv, Timeout: 60})
		if err != nil || r.GetExitCode() != 0 {
			n.t.Fatalf("%q: %v, exit code %d: %s", argv, err, r.GetExitCode(), r.GetStderr())
		}
		return string(r.GetStdout())
	}, remove
}

// usedBytes is what CRI tells kubelet of the disk.
func (n *criNode) usedBytes() (bytes uint64, mountpoint string) {
	n.t.Helper()
	info, err := n.images.ImageFsInfo(n.t.Context(), &runtime.ImageFsInfoRequest{})
	if err != nil || len(info.GetImageFilesystems()) == 0 {
		n.t.Fatal(info, err)
	}
	fs := info.ImageFilesystems[0]
	return fs.GetUsedBytes().GetValue(), fs.GetFsId().GetMountpoint()
}

// The life of images and pods on a node: pulled, listed, run, removed.
func TestCRI(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	pause, app := w.push("tinyhttp", "v1"), w.push("redis", "v1")
	n := w.criNode("", pause, p.Address)
	ctx := t.Context()
	w.ingest(p, app)
	w.dribble()
	id := n.pullImage(app)
	// CRI looks at what snapshots take every ten seconds, while they arrive, too.
	eventually(t, time.Minute, func() error {
		if used, _ := n.usedBytes(); used == 0 {
			return errors.New("CRI tells of no bytes")
		}
		return nil
	})
	if n.status1(app).Complete {
		t.Error("everything was there already: the test shows less")
	}
	w.fast()
	n.pullImage(pause)
	for _, ref := range []string{pause, app} {
		if s := n.status1(ref); s.Mode != "delta" || s.Namespace != "k8s.io" {
			t.Errorf("got %+v, want a delta in k8s.io", s)
		}
		n.wait(ref)
	}
	list, err := n.images.ListImages(ctx, &runtime.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, im := range list.GetImages() {
		if pinned := im.GetRepoTags()[0] == pause; im.GetPinned() != pinned || im.GetSize() == 0 {
			t.Errorf("got %+v, want pinned %v and a size", im, pinned)
		}
	}
	if len(list.GetImages()) != 2 {
		t.Errorf("got %d images, want 2", len(list.GetImages()))
	}
	exec, remove := n.pod("app", app, false, "redis-server", "--port", "7001")
	if out := exec("redis-server", "--version"); !strings.Contains(out, "Redis server") {
		t.Errorf("got %q", out)
	}
	exec("sh", "-c", "echo written > /file")
	stats, err := n.pods.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
	if err != nil || len(stats.GetStats()) != 1 {
		t.Errorf("stats: %v, %v", stats, err)
	}
	remove()

	// What is on the disk is told, after a while, and given back.
	told := func() {
		t.Helper()
		eventually(t, time.Minute, func() error {
			if used, _ := n.usedBytes(); !within(int64(used), n.onDisk()) {
				return fmt.Errorf("CRI tells of %d bytes, the disk has %d: more than 2 %% off", used, n.onDisk())
			}
			return nil
		})
	}
	told()
	_, mountpoint := n.usedBytes()
	if want := filepath.Join(n.Root, "io.containerd.snapshotter.v1.starlight"); mountpoint != want {
		t.Errorf("got mount point %s, want %s", mountpoint, want)
	}
	status, err := n.images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: app}})
	if err != nil || status.GetImage().GetId() != id {
		t.Errorf("got %v, %v, want image %s", status, err, id)
	}
	if _, err := n.images.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: app}}); err != nil {
		t.Fatal(err)
	}
	status, err = n.images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: app}})
	if err != nil || status.GetImage() != nil {
		t.Errorf("after removal: %v, %v", status, err)
	}
	if got, size := n.onDisk(), image(t, "redis", "v1").Gzip; got > size {
		t.Errorf("got %d bytes on the disk after the removal, want less than the %d of the image", got, size)
	}
	eventually(t, time.Minute, func() error {
		if used, _ := n.usedBytes(); int64(used) > n.onDisk() {
			return fmt.Errorf("CRI tells of %d bytes after the removal, the disk has %d", used, n.onDisk())
		}
		return nil
	})
}

// Pods with a user namespace see the files of a lazy image as their own.
func TestCRIUserNamespaces(t *testing.T) {
	runc, err := tools.Runc(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if runc != "" {
		t.Setenv("PATH", runc+":"+os.Getenv("PATH"))
	}
	w := newWorld(t, lan)
	p := w.proxyd()
	ref := w.push("redis", "v1")
	n := w.criNode("", ref, p.Address)
	n.pullImage(ref)
	st, err := n.pods.Status(t.Context(), &runtime.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	supported := false
	for _, h := range st.GetRuntimeHandlers() {
		supported = supported || h.GetFeatures().GetUserNamespaces()
	}
	if !supported {
		t.Fatal("the OCI runtime has no user namespaces for pods")
	}
	exec, remove := n.pod("app", ref, true, "redis-server", "--port", "7002")
	defer remove()
	if out := exec("cat", "/proc/self/uid_map"); strings.Fields(out)[1] != strconv.Itoa(200000) {
		t.Errorf("got map %q", out)
	}
	if out := exec("stat", "-c", "%u %g", "/usr/bin/redis-server"); strings.TrimSpace(out) != "0 0" {
		t.Errorf("got owner %q of a file of the image, want root of the pod", out)
	}
	exec("sh", "-c", "echo changed >> /etc/passwd && chown 12:34 /usr/bin/redis-server")
}

// Keys of other snapshotters' guides make CRI pull by itself; it is a delta, too.
func TestCRIWithLegacyKeys(t *testing.T) {
	for i, key := range []string{"disable_snapshot_annotations = false", "discard_unpacked_layers = true"} {
		t.Run(key, func(t *testing.T) {
			if testing.Short() && i > 0 {
				t.Skip("a variant of the first")
			}
			w := newWorld(t, lan)
			p := w.proxyd()
			ref := w.push("tinyhttp", "v1")
			w.ingest(p, ref)
			n := w.criNode("  "+key, ref, p.Address)
			n.pullImage(ref)
			if !strings.Contains(n.Log(), "Falling back to local image pull mode") {
				t.Fatal("CRI uses the transfer service: the test shows nothing")
			}
			if s := n.status1(ref); s.Mode != "delta" || s.Namespace != "k8s.io" {
				t.Errorf("got %+v, want a delta in k8s.io", s)
			}
			if got := n.pulls(); got != 1 {
				t.Errorf("got %d delta pulls, want 1", got)
			}
			_, remove := n.pod("app", ref, false)
			remove()
			n.wait(ref)
		})
	}
}

// A label in the template of a pod, or of an image, has its containers traced, and
// nothing else.
func TestCRILabelsTraceContainers(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	pause, app := w.push("tinyhttp", "v1"), w.push("redis", "v1")
	n := w.criNode("", pause, p.Address)
	n.pullImage(pause)
	n.pullImage(app)
	n.wait(app)
	exec, remove := n.labelled("traced", app, map[string]string{"starlight.containerd.io/optimizer": "web"}, false, "redis-server", "--port", "7003")
	if out := exec("redis-server", "--version"); !strings.Contains(out, "Redis server") {
		t.Errorf("got %q", out)
	}
	exec("sh", "-c", "echo written > /etc/new && cat /etc/passwd /etc/new")
	_, removeOther := n.pod("other", app, false, "redis-server", "--port", "7004")
	n.ctr("-n", "k8s.io", "image", "label", app, "starlight.containerd.io/optimizer=shop")
	_, removeThird := n.pod("third", app, false, "redis-server", "--port", "7005")
	n.ctr("starlight", "optimizer", "off") // ends the traces under way
	var groups []string
	for _, tr := range n.traces("") {
		if tr.Partial {
			continue
		}
		groups = append(groups, tr.Group)
		if tr.Objects < 5 || !strings.HasPrefix(tr.Image, strings.TrimSuffix(app, ":v1")) {
			t.Errorf("got trace %+v, want one of what Redis reads", tr)
		}
	}
	if slices.Sort(groups); !slices.Equal(groups, []string{"shop", "web"}) {
		t.Errorf("got traces of the groups %q, want one by the label of the pod, and one by that of the image", groups)
	}
	for _, f := range []func(){remove, removeOther, removeThird} {
		f()
	}
}
