package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// show prints findings one to a line.
func show(all []finding) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "%s %s | %s | %s\n", f.Grade, f.Check, f.Detail, f.Mend)
	}
	return b.String()
}

func TestDoctorKnowsTraps(t *testing.T) {
	const cri = "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'starlight'\n"
	for name, tc := range map[string]struct{ conf, want string }{
		"good":      {cri, "ok config"},
		"overlayfs": {"version = 3\n", "warn config | CRI does not use"},
		"local":     {cri + "use_local_image_pull = true\n", "fail config | CRI pulls without Starlight because of use_local_image_pull in [plugins.'io.containerd.cri.v1.images']"},
		"downloads": {cri + "max_concurrent_downloads = 5\n", "io.containerd.transfer.v1.local"},
		"default":   {cri + "max_concurrent_downloads = 3\ndisable_snapshot_annotations = true\n", "ok config"},
		"mirrors":   {cri + "[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\nendpoint = ['http://m']\n", "because of registry.mirrors"},
		"version 2": {"version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'starlight'\ndiscard_unpacked_layers = true\n", "because of discard_unpacked_layers in [plugins.'io.containerd.grpc.v1.cri']"},
		"imported":  {"imports = ['more/*.toml']\n" + cri, "because of image_pull_with_sync_fs"},
		"no TOML":   {"[[[", "containerd cannot start with it"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "more", "a.toml"), "imports = ['*.toml']\n[plugins.'io.containerd.cri.v1.images']\nimage_pull_with_sync_fs = true\n")
			got := show(checkConfig(write(t, filepath.Join(dir, "config.toml"), tc.conf)))
			if !strings.Contains(got, tc.want) {
				t.Errorf("got\n%s, want %q in it", got, tc.want)
			}
		})
	}
	if got := show(checkConfig("/nonexistent/config.toml")); !strings.Contains(got, "warn config") {
		t.Errorf("got %s", got)
	}
}

func TestDoctorKnowsKernels(t *testing.T) {
	for release, want := range map[string]string{
		"6.18.1":         "ok kernel | Linux 6.18.1 |",
		"6.11.0-generic": "loop device",
		"6.8.0":          "survive the death",
		"5.15.0-91":      "data-only layers",
	} {
		root := t.TempDir()
		write(t, filepath.Join(root, "proc/filesystems"), "nodev\toverlay\n\text4\n\tfuseblk\nnodev\tfuse\n")
		write(t, filepath.Join(root, "proc/sys/kernel/osrelease"), release+"\n")
		got := show(checkKernel(root))
		for _, want := range []string{want, "modprobe erofs", "ok kernel | file system overlay", "/dev/fuse is not there"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: got\n%s, want %q in it", release, got, want)
			}
		}
	}
}

func TestDoctorAsksTheService(t *testing.T) {
	failing := half()
	failing.Reason = "proxy http://near:8090: stalled"
	f := &fake{images: []*api.Image{failing}, rtts: []time.Duration{time.Millisecond}, proxies: []*api.Proxy{{Address: "http://near:8090"}, {Address: "http://down:1"}}}
	got := execute(t.Context(), f.listen(t), "doctor", "--config", "/nonexistent")
	for _, want := range []string{"2.4.2+starlight.0.1.0", "http://near:8090  min/avg/max 1.0", "curl http://down:1/healthz", "status --missing registry.example/app:2", "[exit 1]"} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s, want %q in it", got, want)
		}
	}
	got = execute(t.Context(), "/nonexistent.sock", "doctor", "--json", "--config", "/nonexistent")
	if !strings.Contains(got, "is containerd running") || !strings.Contains(got, `"grade": "fail"`) {
		t.Errorf("without containerd: got\n%s", got)
	}
}
