package tools

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// Clients that cannot be installed with "go install" because their go.mod replaces
// modules. Each has a module of its own here that pins what they are built of.
const (
	nerdctl = "github.com/containerd/nerdctl/v2"
	kubelet = "k8s.io/kubernetes"
)

// Nerdctl returns nerdctl, building it if it is not there.
func Nerdctl(ctx context.Context) (string, error) {
	return pinned(ctx, "nerdctl", nerdctl, nerdctl+"/pkg/version.Version")
}

// Kubelet returns a kubelet, building it if it is not there, which takes many
// minutes.
func Kubelet(ctx context.Context) (string, error) {
	return pinned(ctx, "kubelet", kubelet, "k8s.io/component-base/version.gitVersion")
}

// pinned builds module/cmd/name in the version that the module below name wants,
// and stamps it.
func pinned(ctx context.Context, name, module, stamp string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "integration", "internal", "tools", name)
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return "", err
	}
	version, err := required(mod, module)
	if err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	return cached(ctx, name+"-"+version, name, func(out string) *exec.Cmd {
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
