package confedit

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aymanbagabas/go-udiff"
)

var update = flag.Bool("update", false, "write golden files")

const proxy = `  [[plugins.'io.containerd.starlight.v1.engine'.proxies]]
    address = "http://near:8090"
    registries = ["*.example"]
`

// TestInstall: the diffs are golden, and taking the lines out gives the same bytes again.
func TestInstall(t *testing.T) {
	both := Change{Engine: proxy, CRI: true}
	var got strings.Builder
	for _, tt := range []struct {
		name, text string
		change     Change
	}{
		{"new file", "", both},
		{"empty file", "", Change{CRI: true}},
		{"comments and other lines", "# mine\nversion = 3\n\n[grpc] # x\n  address='/a'\n", Change{Engine: proxy}},
		{"no end of line", "version = 3", both},
		{"windows", "version = 3\r\nroot = 'a'\r\n", Change{Engine: proxy}},
		{"snapshotter is set", "version = 3\n[plugins]\n  [plugins.'io.containerd.cri.v1.images']\n    snapshotter = 'overlayfs' # default\n    x = 1\n", both},
		{"section without snapshotter", "version = 3\n[plugins.\"io.containerd.cri.v1.images\"]\n  x = 1\n[debug]\n", both},
		{"empty section", "[plugins.'io.containerd.cri.v1.images']\n", Change{CRI: true}},
		{"version 2", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\tsnapshotter = \"overlayfs\"\n", both},
		{"already starlight", "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = \"starlight\"\n", both},
		{"header in a string", "x = '''\n[plugins.'io.containerd.cri.v1.images']\n'''\n", both},
		{"template", "{{ template \"base\" . }}\n[x\n", Change{Engine: proxy, Template: true}},
		{"new template", "", Change{Engine: proxy, Template: true}},
	} {
		tt.change.New = strings.HasPrefix(tt.name, "new")
		out, err := Install([]byte(tt.text), tt.change)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got.WriteString("# " + tt.name + "\n" + udiff.Unified("before", "after", tt.text, string(out)) + "\n")
		if _, err := Install(out, tt.change); !errors.Is(err, ErrInstalled) {
			t.Errorf("%s: a second time: %v", tt.name, err)
		}
		back, remove, err := Uninstall(out)
		if err != nil || string(back) != tt.text || remove != tt.change.New {
			t.Errorf("%s: got back %q, remove %v, %v; want %q", tt.name, back, remove, err, tt.text)
		}
		// What others write behind it stays.
		if back, _, err := Uninstall(append(out, "[late]\n"...)); err != nil || !strings.HasSuffix(string(back), "[late]\n") {
			t.Errorf("%s: got back %q, %v", tt.name, back, err)
		}
	}
	file := filepath.Join("testdata", "install.golden")
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

func TestInstallRefuses(t *testing.T) {
	both := Change{Engine: proxy, CRI: true}
	for name, tt := range map[string]struct {
		text   string
		change Change
		want   string
	}{
		"no TOML":            {"a = 1\n[x\n", both, "line 2"},
		"section":            {"a = 1\n[plugins.'io.containerd.starlight.v1.engine']\n", both, "line 2 has the section"},
		"proxies":            {"[[plugins.\"io.containerd.starlight.v1.engine\".proxies]]\n", both, "line 1 has the section"},
		"dotted key":         {"[plugins]\n'io.containerd.starlight.v1.engine'.read_timeout = '1s'\n", both, "line 2 has the section"},
		"inline":             {"plugins = {}\n", both, "by hand:\n[plugins.'io.containerd.starlight.v1.engine']"},
		"inline images":      {"[plugins]\n'io.containerd.cri.v1.images' = {snapshotter = 'overlayfs'}\n", both, "by hand"},
		"cri in a template":  {"", Change{Engine: proxy, CRI: true, Template: true}, "--snapshotter starlight"},
		"template has it":    {"# io.containerd.starlight.v1.engine", Change{Engine: proxy, Template: true}, "by hand"},
		"engine is no TOML":  {"", Change{Engine: "= 1\n"}, "section of the engine"},
		"dotted snapshotter": {"[plugins]\n'io.containerd.cri.v1.images'.snapshotter = 'overlayfs'\n", Change{CRI: true}, "by hand"},
	} {
		if out, err := Install([]byte(tt.text), tt.change); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %q, %v, want %q", name, out, err, tt.want)
		}
	}
	if _, _, err := Uninstall([]byte(begin + "\nx = 1\n")); err == nil {
		t.Error("a block without an end is taken out")
	}
}
