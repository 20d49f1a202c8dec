// Package tools finds the binaries under test and gets those that tests need
// besides: stock containerd and a real registry, built by the go command into the
// repository's .cache/bin.
package tools

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// RegistryModule is the registry that tests, benchmarks and the demo push to. It
// is not in go.mod: it would bring the dependencies of three clouds.
const RegistryModule = "github.com/distribution/distribution/v3/cmd/registry@v3.1.2"

const runcModule = "github.com/opencontainers/runc@v1.5.3"

const containerd = "github.com/containerd/containerd/v2"

// Binaries are the paths of what runs on a node.
type Binaries struct {
	Containerd, Ctr, Shim string
	// CtrStarlight and Proxyd are "" for stock containerd.
	CtrStarlight, Proxyd string
}

// Root returns the directory of the repository.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		b, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module github.com/starlight-delta/starlight\n") {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not inside the repository of Starlight", dir)
		}
	}
}

// Product returns what "make build" made, in bin/ or in $STARLIGHT_BIN.
func Product() (Binaries, error) {
	dir := os.Getenv("STARLIGHT_BIN")
	if dir == "" {
		root, err := Root()
		if err != nil {
			return Binaries{}, err
		}
		dir = filepath.Join(root, "bin")
	}
	b := Binaries{
		Containerd:   filepath.Join(dir, "containerd"),
		Ctr:          filepath.Join(dir, "ctr"),
		Shim:         filepath.Join(dir, "containerd-shim-runc-v2"),
		CtrStarlight: filepath.Join(dir, "ctr-starlight"),
		Proxyd:       filepath.Join(dir, "proxyd"),
	}
	for _, p := range []string{b.Containerd, b.Ctr, b.Shim, b.CtrStarlight, b.Proxyd} {
		if _, err := os.Stat(p); err != nil {
			return Binaries{}, fmt.Errorf("%w (run \"make build\" first)", err)
		}
	}
	return b, nil
}

// Stock returns upstream's containerd in the version of go.mod, building it if it
// is not there.
func Stock(ctx context.Context) (Binaries, error) {
	var b Binaries
	root, err := Root()
	if err != nil {
		return b, err
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return b, err
	}
	version, err := required(mod, containerd)
	if err != nil {
		return b, err
	}
	for _, t := range []struct {
		name string
		path *string
	}{{"containerd", &b.Containerd}, {"ctr", &b.Ctr}, {"containerd-shim-runc-v2", &b.Shim}} {
		p, err := cached(ctx, "stock-"+version, t.name, func(dir string) *exec.Cmd {
			return exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", dir, containerd+"/cmd/"+t.name)
		})
		if err != nil {
			return b, err
		}
		*t.path = p
	}
	return b, nil
}

// FailPoints builds our containerd into dir such that it can be made to end at each step
// that changes what is on the disk, and lists these steps.
func FailPoints(ctx context.Context, dir string) (bin string, steps []string, err error) {
	root, err := Root()
	if err != nil {
		return "", nil, err
	}
	c := exec.CommandContext(ctx, "go", "build", "-tags", "failpoint", "-o", dir, "./containerd-build")
	c.Dir = root
	if out, err := c.CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("%s: %w: %s", c, err, out)
	}
	re := regexp.MustCompile(`failpoint\.Here\("([^"]+)"\)`)
	err = filepath.WalkDir(filepath.Join(root, "plugins"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range re.FindAllSubmatch(b, -1) {
			steps = append(steps, string(m[1]))
		}
		return err
	})
	return filepath.Join(dir, "containerd-build"), steps, err
}

// Registry returns the registry binary, installing it if it is not there.
func Registry(ctx context.Context) (string, error) {
	_, version, _ := strings.Cut(RegistryModule, "@")
	return cached(ctx, "registry-"+version, "registry", func(dir string) *exec.Cmd {
		c := exec.CommandContext(ctx, "go", "install", "-trimpath", RegistryModule)
		c.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0")
		return c
	})
}

// Runc returns the directory of a runc that can map the files of pods with a user
// namespace, as 1.2 and later can, installing one if the machine's own cannot; "" if it
// can.
func Runc(ctx context.Context) (string, error) {
	if out, _ := exec.CommandContext(ctx, "runc", "features").Output(); strings.Contains(string(out), "mountExtensions") {
		return "", nil
	}
	_, version, _ := strings.Cut(runcModule, "@")
	path, err := cached(ctx, "runc-"+version, "runc", func(dir string) *exec.Cmd {
		c := exec.CommandContext(ctx, "go", "install", "-trimpath", runcModule)
		c.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=1")
		return c
	})
	return filepath.Dir(path), err
}

// cached returns .cache/bin/set/name and runs build if it is missing; several
// processes may ask at once.
func cached(ctx context.Context, set, name string, build func(dir string) *exec.Cmd) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, ".cache", "bin", set)
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tmp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	c := build(tmp)
	if c.Dir == "" {
		c.Dir = root
	}
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", c, err, out)
	}
	return path, os.Rename(filepath.Join(tmp, name), path)
}
