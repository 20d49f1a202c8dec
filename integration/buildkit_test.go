package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// BuildKit builds on an image of the registry and on one whose layers are virtual, in
// starlight; what it pushes is an image as any other.
func TestBuildKit(t *testing.T) {
	if os.Getenv("STARLIGHT_BUILDKIT") == "" {
		t.Skip("BuildKit takes long to build: \"make test-buildkit\" runs this")
	}
	daemon, client, err := tools.BuildKit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w, p, n := accelerated(t, lan)
	refs := []string{w.push("redis", "v1"), w.push("redis", "v2")}
	w.ingest(p, refs...)

	root := filepath.Join(n.Dir, "buildkit")
	conf, socket := filepath.Join(w.Dir, "buildkitd.toml"), "unix://"+filepath.Join(w.Dir, "buildkitd.sock")
	if err := os.WriteFile(conf, []byte("[registry.\""+w.Registry.Host+"\"]\n  http = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := process.Start(w.Link.Edge, "buildkitd", exec.Command(daemon, "--config", conf, "--root", root, "--addr", socket,
		"--oci-worker=false", "--containerd-worker=true", "--containerd-worker-addr", n.Socket,
		"--containerd-worker-snapshotter", starlight, "--containerd-worker-net", "host"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(tail(d.Log.String(), 50))
		}
	})
	if err := d.WaitLog(t.Context(), "running server"); err != nil {
		t.Fatal(err)
	}

	n.ctr("-n", "buildkit", "image", "pull", "--plain-http", "--snapshotter", starlight, refs[1])
	for i, base := range refs {
		built := w.Registry.Ref("built", []string{"v1", "v2"}[i])
		dir := t.TempDir()
		dockerfile := "FROM " + base + "\nRUN redis-server --version >/version && rm /usr/bin/redis-benchmark\nCOPY Dockerfile /from\n"
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := process.Run(w.Link.Edge, exec.CommandContext(t.Context(), client, "--addr", socket, "build", "--frontend", "dockerfile.v0",
			"--local", "context="+dir, "--local", "dockerfile="+dir, "--output", "type=image,name="+built+",push=true,registry.insecure=true"))
		if err != nil {
			t.Fatal(err)
		}
		other := &node{w.node(sandbox.NodeConfig{Name: "other" + built[len(built)-2:], Proxies: []string{p.Address}}).Node, t}
		other.pull(built)
		if s := other.status1(built); s.Mode != "delta" {
			t.Errorf("got %+v, want a delta of what was built", s)
		}
		out := other.output(built, "x", "sh", "-c", "cat /version /from; ls /usr/bin/redis-benchmark || true")
		if !strings.Contains(out, "Redis server") || !strings.HasSuffix(out, dockerfile) {
			t.Errorf("got %q, want what was built", out)
		}
	}
	n.clean()
}
