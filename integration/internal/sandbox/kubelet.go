package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/process"
	"golang.org/x/sys/unix"
)

// KubeletPort serves /pods and /stats/summary of a kubelet in plain HTTP.
const KubeletPort = 10255

// Kubelet runs static pods on a node, without an API server.
type Kubelet struct {
	*process.Process
	// Root is its root directory; it looks for Docker's config.json there.
	Root string
	// Manifests is where it looks for static pods.
	Manifests string

	node   *Node
	config KubeletConfig
	cgroup string
	logs   []string // of earlier lives
}

// KubeletConfig of a kubelet.
type KubeletConfig struct {
	Binary string
	// Settings are further keys of its KubeletConfiguration.
	Settings map[string]any
	Args     []string
}

// NewKubelet prepares a kubelet for a node with CRI; Start starts it.
func (w *World) NewKubelet(n *Node, c KubeletConfig) (*Kubelet, error) {
	k := &Kubelet{
		Root:      filepath.Join(n.Dir, "kubelet"),
		Manifests: filepath.Join(n.Dir, "manifests"),
		node:      n,
		config:    c,
		cgroup:    filepath.Base(w.Dir),
	}
	n.kubelet = k
	w.Closing(k)
	for _, d := range []string{k.Root, k.Manifests, filepath.Join(n.Dir, "pods")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	all, err := cgroups()
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		if err := os.Mkdir(filepath.Join(h, k.cgroup), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return k, nil
}

// unchanged starts a command in a mount namespace in which it finds the kernel set
// as a kubelet sets it, so that it does not set that of the machine, and in which
// the directories that it cannot be talked out of are its own.
const unchanged = `
while read -r value file; do
	echo "$value" >"$1/$value"
	mount --bind "$1/$value" "/proc/sys/$file"
done <<END
1 vm/overcommit_memory
0 vm/panic_on_oom
10 kernel/panic
1 kernel/panic_on_oops
1000000 kernel/keys/root_maxkeys
25000000 kernel/keys/root_maxbytes
END
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /var/log
shift
exec "$@"
`

// Start starts the kubelet, again if it was stopped. Pods go on meanwhile.
func (k *Kubelet) Start(ctx context.Context, settings map[string]any) error {
	if k.Process != nil {
		k.logs = append(k.logs, k.Log.String())
	}
	conf := map[string]any{
		"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
		"containerRuntimeEndpoint": "unix://" + k.node.Socket,
		"staticPodPath":            k.Manifests,
		"podLogsDir":               filepath.Join(k.node.Dir, "pods"),
		"volumePluginDir":          filepath.Join(k.Root, "volume-plugins"),
		"fileCheckFrequency":       "1s",
		"readOnlyPort":             KubeletPort,
		"authentication":           map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":            map[string]any{"mode": "AlwaysAllow"},
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + k.cgroup,
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"makeIPTablesUtilChains":   false,
		"oomScoreAdj":              0, // a lower one is not for everybody to set
		"evictionHard":             map[string]string{"memory.available": "1Mi"},
		"imageMinimumGCAge":        "1s",
	}
	maps.Copy(conf, k.config.Settings)
	maps.Copy(conf, settings)
	b, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	file := filepath.Join(k.Root, "config.yaml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return err
	}
	sysctls := filepath.Join(k.Root, "sysctls")
	if err := os.MkdirAll(sysctls, 0o755); err != nil {
		return err
	}
	args := append([]string{"--mount", "--propagation", "slave", "sh", "-euc", unchanged, "sh", sysctls,
		k.config.Binary, "--config", file, "--root-dir", k.Root, "--cert-dir", filepath.Join(k.Root, "pki"),
		"--hostname-override", "node", "--node-ip", k.node.c.Namespace.Addr}, k.config.Args...)
	cmd := exec.Command("unshare", args...)
	cmd.Dir = k.Root
	if k.Process, err = process.Start(k.node.c.Namespace, "kubelet", cmd); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	client := k.node.c.Namespace.Client()
	defer client.CloseIdleConnections()
	return waitHTTP(ctx, client, fmt.Sprintf("http://127.0.0.1:%d/healthz", KubeletPort), "ok", k.Done())
}

// Get decodes what the kubelet answers to a GET of its read-only port.
func (k *Kubelet) Get(ctx context.Context, path string, answer any) error {
	client := k.node.c.Namespace.Client()
	defer client.CloseIdleConnections()
	b, err := get(ctx, client, fmt.Sprintf("http://127.0.0.1:%d%s", KubeletPort, path))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, answer)
}

// Apply makes a manifest that of the static pod name, or replaces it.
func (k *Kubelet) Apply(name string, pod any) error {
	b, err := json.Marshal(pod)
	if err != nil {
		return err
	}
	tmp := filepath.Join(k.Manifests, "."+name) // a kubelet skips hidden files
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(k.Manifests, name+".yaml"))
}

// AllLogs returns what the kubelet has said in all its lives.
func (k *Kubelet) AllLogs() string {
	all := strings.Join(k.logs, "")
	if k.Process != nil {
		all += k.Log.String()
	}
	return all
}

// Stop stops the kubelet. Pods go on.
func (k *Kubelet) Stop() error {
	if k.Process == nil {
		return nil
	}
	select {
	case <-k.Done():
		return nil
	default:
		return k.Process.Stop()
	}
}

// Close removes what the kubelet leaves behind when its node is closed.
func (k *Kubelet) Close() error {
	var errs []error
	all, err := cgroups()
	errs = append(errs, err)
	for _, h := range all {
		errs = append(errs, removeCgroup(filepath.Join(h, k.cgroup)))
	}
	return errors.Join(errs...)
}

// cgroups lists the mount points of all cgroup hierarchies.
func cgroups() ([]string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []string
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if m := strings.Fields(s.Text()); len(m) > 2 && (m[2] == "cgroup" || m[2] == "cgroup2") {
			all = append(all, unescape(m[1]))
		}
	}
	return all, s.Err()
}

// removeCgroup removes a cgroup and those below it.
func removeCgroup(dir string) error {
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, d := range slices.Backward(all) {
		if err := unix.Rmdir(d); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", d, err)
		}
	}
	return nil
}
