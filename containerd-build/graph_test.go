//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"google.golang.org/grpc/codes"

	ours "github.com/starlight-delta/starlight/plugins"
)

// asDaemon in the environment makes the test binary the daemon that it tests.
const asDaemon = "STARLIGHT_TEST_CONTAINERD"

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// daemon runs our containerd until the end of the test.
func daemon(t *testing.T, config string) (c *containerd.Client, log func() string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containerd needs root")
	}
	// Short, as the socket's path must be.
	dir, err := os.MkdirTemp("", "sl") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBelow(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	file, socket := filepath.Join(dir, "config.toml"), filepath.Join(dir, "c.sock")
	base := fmt.Sprintf("version = 4\nroot = %q\nstate = %q\n[plugins.'io.containerd.server.v1.grpc']\n  address = %q\n"+
		"[plugins.'io.containerd.server.v1.ttrpc']\n  address = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket, socket+".ttrpc")
	if err := os.WriteFile(file, []byte(base+config), 0o600); err != nil {
		t.Fatal(err)
	}
	stderr, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	log = func() string {
		b, err := os.ReadFile(stderr.Name())
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, os.Args[0], "-c", file)
	cmd.Env = append(os.Environ(), asDaemon+"=1")
	cmd.Stderr = stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		// Ended by the signal or by itself: its log says which, if the test failed.
		var exit *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &exit) && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(log())
		}
	})
	c, err = containerd.New(socket, containerd.WithTimeout(60*time.Second))
	if err != nil {
		t.Fatalf("%v\n%s", err, log())
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	// Not the first call to come through: a socket that is bound but does not
	// listen yet refuses, and a call that does not wait for it fails.
	ready, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if ok, err := c.IsServing(ready); err != nil || !ok {
		t.Fatalf("containerd does not serve: %v", err)
	}
	return c, log
}

// unmountBelow takes away what the daemon left mounted for a next one.
func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	for _, point := range slices.Backward(points) {
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			t.Errorf("unmount %s: %v", point, err)
		}
	}
}

// loaded checks that every plugin has loaded or was skipped, and returns them.
func loaded(t *testing.T, c *containerd.Client) map[string][]string {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), "default")
	r, err := c.IntrospectionService().Plugins(ctx)
	if err != nil {
		t.Fatal(err)
	}
	byType := map[string][]string{}
	for _, p := range r.Plugins {
		if e := p.InitErr; e != nil && codes.Code(e.Code) != codes.OK {
			if strings.Contains(e.Message, "skip plugin") {
				t.Logf("skipped: %s.%s", p.Type, p.ID)
				continue
			}
			// What a machine without network and init has not, it has not for upstream either.
			t.Errorf("%s.%s: %s", p.Type, p.ID, e.Message)
		}
		byType[p.Type] = append(byType[p.Type], p.ID)
	}
	return byType
}

func TestGraph(t *testing.T) {
	c, _ := daemon(t, "")
	got := loaded(t, c)
	for kind, want := range map[string]string{
		plugins.TransferPlugin.String(): "local",
		plugins.ContentPlugin.String():  "content",
		ours.EnginePlugin.String():      ours.EngineID,
	} {
		if ids := got[kind]; len(ids) != 1 || ids[0] != want {
			t.Errorf("%s: got %q, want one, %q", kind, ids, want)
		}
	}
	if ids := strings.Join(got[plugins.SnapshotPlugin.String()], " "); !strings.Contains(ids, ours.SnapshotterName) ||
		!strings.Contains(ids, "overlayfs") {
		t.Errorf("snapshotters: got %q", ids)
	}
	v, err := c.Version(t.Context())
	if err != nil || v.Version == "" {
		t.Errorf("version: got %v, %v", v, err)
	}
}

func TestConfigKeys(t *testing.T) {
	c, log := daemon(t, `
[plugins.'io.containerd.starlight.v1.engine']
  default_snapshotter = true
  read_timeout = "1m"
  header_timeout = "5s"
  root_path = ""
  [[plugins.'io.containerd.starlight.v1.engine'.proxies]]
    address = "http://127.0.0.1:1"
    registries = ["*"]
[plugins.'io.containerd.snapshotter.v1.starlight']
  upperdir_label = true
  sync_remove = true
  slow_chown = true
  mount_options = []
[plugins.'io.containerd.transfer.v1.local']
  max_concurrent_downloads = 5
  concurrent_layer_fetch_buffer = 0
  max_concurrent_uploaded_layers = 4
  check_platform_supported = false
  config_path = ""
  max_concurrent_unpacks = 2
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = "linux"
    snapshotter = "starlight"
    differ = "walking"
`)
	loaded(t, c)
	for line := range strings.Lines(log()) {
		if strings.Contains(strings.ToLower(line), "unknown key") {
			t.Error(line)
		}
	}
}

// TestSampleConfig starts with the file that operators begin with.
func TestSampleConfig(t *testing.T) {
	b, err := os.ReadFile("config.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, plain, ok := strings.Cut(string(b), "version = 4\n")
	if !ok {
		t.Fatal("config.toml has no version")
	}
	c, _ := daemon(t, plain)
	loaded(t, c)
}

// TestBuiltinsFollowUpstream: an upgrade of containerd must not lose plugins.
func TestBuiltinsFollowUpstream(t *testing.T) {
	const pkg = "github.com/containerd/containerd/v2/cmd/containerd/builtins"
	theirs := deps(t, pkg)
	mine := deps(t, ".")
	replaced := map[string]bool{
		"github.com/containerd/containerd/v2/plugins/content/local/plugin": true,
		"github.com/containerd/containerd/v2/plugins/transfer":             true,
	}
	for p := range theirs {
		if mine[p] == replaced[p] {
			t.Errorf("%s: linked is %v", p, mine[p])
		}
	}
}

// deps lists what a package imports itself.
func deps(t *testing.T, pkg string) map[string]bool {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{join .Imports "\n"}}`, pkg).Output()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for p := range strings.Lines(string(out)) {
		all[strings.TrimSpace(p)] = true
	}
	return all
}
