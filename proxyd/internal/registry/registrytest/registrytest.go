// Package registrytest runs a real registry, distribution, for tests, and pushes
// images to it.
package registrytest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// module is what is built if there is no registry on this machine.
const module = "github.com/distribution/distribution/v3/cmd/registry@v3.1.2"

// User and Password are what a registry started with BasicAuth asks for.
const (
	User     = "alice"
	Password = "s3cret-pa55"
	// htpasswd of them: bcrypt of cost 4.
	htpasswd = "alice:$2a$04$drpCwM9nYXm7wcMLEEzgd.XCdUK8yy/plM8u06L1Qmyryu.2gEcYK\n" //nolint:gosec // of the constants above
)

// Registry is a running registry.
type Registry struct {
	Host string // 127.0.0.1:port
	auth *auth.Client
}

// Start starts a registry that asks nobody for credentials.
func Start(t testing.TB) *Registry {
	t.Helper()
	return start(t, "", auth.EmptyCredential)
}

// StartBasicAuth starts a registry that asks for User and Password.
func StartBasicAuth(t testing.TB) *Registry {
	t.Helper()
	path := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(path, []byte(htpasswd), 0o600); err != nil {
		t.Fatal(err)
	}
	return start(t, "auth:\n  htpasswd:\n    realm: test\n    path: "+path+"\n", auth.Credential{Username: User, Password: Password})
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

func start(t testing.TB, config string, cred auth.Credential) *Registry {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yml")
	config = "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: " + dir +
		"/data\nhttp:\n  addr: 127.0.0.1:0\n" + config
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary(t), "serve", path) //nolint:noctx // a binary of the test; ended below
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	host, done := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(done)
		var log strings.Builder
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			if m := listening.FindStringSubmatch(sc.Text()); m != nil {
				host <- m[1]
				_, _ = io.Copy(io.Discard, stderr)
				return
			}
			log.WriteString(sc.Text() + "\n")
		}
		t.Logf("registry:\n%s", log.String())
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	})
	select {
	case h := <-host:
		return &Registry{Host: h, auth: &auth.Client{Credential: auth.StaticCredential(h, cred), Cache: auth.NewCache()}}
	case <-done:
		t.Fatal("the registry ended")
		return nil
	}
}

// binary finds the registry in $REGISTRY_BINARY or $PATH, or has it built into the
// .cache of the repository.
func binary(t testing.TB) string {
	t.Helper()
	if p := os.Getenv("REGISTRY_BINARY"); p != "" {
		return p
	}
	if p, err := exec.LookPath("registry"); err == nil {
		return p
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
	}
	bin := filepath.Join(dir, ".cache", "bin", "registry-v3.1.2") // shared with integration
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(bin+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(bin, "registry")
	if _, err := os.Stat(p); err == nil {
		return p
	}
	cmd := exec.CommandContext(context.Background(), "go", "install", module)
	cmd.Env = append(os.Environ(), "GOBIN="+bin, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go install %s: %v\n%s", module, err, out)
	}
	return p
}

// Layer is a layer to push.
type Layer struct {
	MediaType string // "" is an OCI layer compressed with gzip
	Blob      []byte
	DiffID    [sha256.Size]byte
}

// Repository returns a client of a repository.
func (r *Registry) Repository(t testing.TB, repo string) *remote.Repository {
	t.Helper()
	rr, err := remote.NewRepository(r.Host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	rr.PlainHTTP, rr.Client = true, r.auth
	return rr
}

// Push pushes bytes as a blob or, by their media type, as a manifest.
func (r *Registry) Push(t testing.TB, repo, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := r.Repository(t, repo).Push(t.Context(), d, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	return d
}

// PushJSON pushes v.
func (r *Registry) PushJSON(t testing.TB, repo, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return r.Push(t, repo, mediaType, b)
}

// Image pushes an OCI image and returns the descriptor of its manifest, with the
// platform.
func (r *Registry) Image(t testing.TB, repo, arch string, layers ...Layer) ocispec.Descriptor {
	t.Helper()
	var cfg ocispec.Image
	cfg.OS, cfg.Architecture, cfg.RootFS.Type = "linux", arch, "layers"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	for _, l := range layers {
		if l.MediaType == "" {
			l.MediaType = ocispec.MediaTypeImageLayerGzip
		}
		m.Layers = append(m.Layers, r.Push(t, repo, l.MediaType, l.Blob))
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.Digest(fmt.Sprintf("sha256:%x", l.DiffID)))
	}
	m.Config = r.PushJSON(t, repo, ocispec.MediaTypeImageConfig, cfg)
	d := r.PushJSON(t, repo, m.MediaType, m)
	d.Platform = &cfg.Platform
	return d
}

// Index pushes an OCI index.
func (r *Registry) Index(t testing.TB, repo string, manifests ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	return r.PushJSON(t, repo, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests,
	})
}

// Tag tags a manifest or index.
func (r *Registry) Tag(t testing.TB, repo, tag string, d ocispec.Descriptor) {
	t.Helper()
	if err := r.Repository(t, repo).Tag(t.Context(), d, tag); err != nil {
		t.Fatal(err)
	}
}
