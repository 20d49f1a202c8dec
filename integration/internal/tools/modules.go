package tools

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Clients that cannot be installed with "go install" because their go.mod replaces
// modules. Each has a module of its own here that pins what they are built of.
const (
	nerdctl  = "github.com/containerd/nerdctl/v2"
	kubelet  = "k8s.io/kubernetes"
	buildkit = "github.com/moby/buildkit"
)

// Nerdctl returns nerdctl, building it if it is not there.
func Nerdctl(ctx context.Context) (string, error) {
	return pinned(ctx, nerdctl, "nerdctl", "nerdctl", nerdctl+"/pkg/version.Version")
}

// Kubelet returns a kubelet, building it if it is not there, which takes many
// minutes.
func Kubelet(ctx context.Context) (string, error) {
	return pinned(ctx, kubelet, "kubelet", "kubelet", "k8s.io/component-base/version.gitVersion")
}

// BuildKit returns its daemon and its client, building them if they are not there,
// which takes minutes.
func BuildKit(ctx context.Context) (daemon, client string, err error) {
	for name, path := range map[string]*string{"buildkitd": &daemon, "buildctl": &client} {
		if *path, err = pinned(ctx, buildkit, "buildkit", name, buildkit+"/version.Version"); err != nil {
			return "", "", err
		}
	}
	return daemon, client, nil
}

// ClientTests returns containerd's own integration tests of its client, in the version
// of go.mod, built for a default snapshotter: many of them do not ask which one is meant.
func ClientTests(ctx context.Context, snapshotter string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}} {{.Version}}", containerd)
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", list, err)
	}
	dir, version, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	return cached(ctx, "client-tests-"+version+"-"+snapshotter, "client.test", func(tmp string) *exec.Cmd {
		// The go command replaces no file of the module cache, so it gets a copy. The suite
		// of snapshotters knows by their names which ones are made of overlayfs.
		const script = `cp -r "$1" "$2/containerd" && chmod -R u+w "$2/containerd" && cp go.mod "$2/with.mod" && cp go.sum "$2/with.sum" &&
			sed -i 's/DefaultSnapshotter = "overlayfs"/DefaultSnapshotter = "'"$3"'"/' "$2/containerd/defaults/defaults_linux.go" &&
			sed -i 's/case "overlayfs"/case "'"$3"'", "overlayfs"/' "$2/containerd/core/snapshots/testsuite/issues.go" &&
			grep -q '"'"$3"'"' "$2/containerd/defaults/defaults_linux.go" && grep -q '"'"$3"'"' "$2/containerd/core/snapshots/testsuite/issues.go" &&
			go mod edit -replace "$4=$2/containerd" "$2/with.mod" &&
			go test -c -trimpath -modfile "$2/with.mod" -o "$2/client.test" "$4/integration/client"`
		return exec.CommandContext(ctx, "sh", "-c", script, "sh", dir, tmp, snapshotter, containerd)
	})
}

// pinned builds module/cmd/name in the version that the module in the directory set
// wants, and stamps it.
func pinned(ctx context.Context, module, set, name, stamp string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "integration", "internal", "tools", set)
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return "", err
	}
	version, err := required(mod, module)
	if err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	return cached(ctx, set+"-"+version, name, func(out string) *exec.Cmd {
		c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X "+stamp+"="+version,
			"-o", out, module+"/cmd/"+name)
		c.Dir = dir
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		return c
	})
}

// required is the version of a module that a go.mod requires.
func required(mod []byte, module string) (string, error) {
	re := regexp.MustCompile(`(?m)^(?:require)?\s*` + regexp.QuoteMeta(module) + ` (v\S+)`)
	m := re.FindSubmatch(mod)
	if m == nil {
		return "", errors.New("no version of " + module + " in go.mod")
	}
	return string(m[1]), nil
}
