// Package sandbox gives a test, a benchmark or the demo a world of its own: a
// link, a registry and a proxyd at its far end, and nodes (containerd, ours or
// stock, with runc) at its near end. Nothing of it is shared with another world or
// with the machine, and nothing is left when it is closed.
package sandbox

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/registry"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// Ports at the far end.
const (
	RegistryPort = 5000
	ProxydPort   = 8090
)

// dirPrefix is followed by the pid of the owner.
const dirPrefix = "starlight-"

// World is a link with what is at its two ends.
type World struct {
	Link     *wan.Link
	Registry *registry.Registry
	// Dir is on a real disk: EROFS images cannot be mounted from a tmpfs.
	Dir string

	nodes  []*Node
	others []io.Closer
	pushed map[string]digest.Digest
	// restore what New changed on the machine.
	restore func() error
}

// New makes a world with an open registry. Its directory is below $STARLIGHT_TMP
// (default /var/tmp); what killed runs left there is removed first.
func New(ctx context.Context, link wan.Config) (_ *World, err error) {
	if os.Getuid() != 0 {
		return nil, errors.New("containers and network namespaces need root")
	}
	parent := os.Getenv("STARLIGHT_TMP")
	if parent == "" {
		parent = "/var/tmp"
	}
	removeStale(parent)
	dir, err := os.MkdirTemp(parent, dirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, err
	}
	w := &World{Dir: dir, pushed: make(map[string]digest.Digest)}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	// The root of a container's user namespace is somebody else here.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	if w.restore, err = oneScheduler(); err != nil {
		return nil, err
	}
	if w.Link, err = wan.New(link); err != nil {
		return nil, err
	}
	w.Registry, err = registry.Start(ctx, w.Link.Cloud, registry.Config{Dir: filepath.Join(dir, "registry"), Port: RegistryPort})
	return w, err
}

// Push pushes tag of an OCI image layout as name:tag and returns its reference.
func (w *World) Push(ctx context.Context, layout, name, tag string) (string, error) {
	ref := w.Registry.Ref(name, tag)
	if _, ok := w.pushed[ref]; ok {
		return ref, nil
	}
	d, err := w.Registry.Push(ctx, layout, name, tag)
	if err == nil {
		w.pushed[ref] = d
	}
	return ref, err
}

// Closing makes Close close c too, before the link goes.
func (w *World) Closing(c io.Closer) { w.others = append(w.others, c) }

// Close stops everything and removes it.
func (w *World) Close() error {
	var errs []error
	for _, n := range w.nodes {
		errs = append(errs, n.Close())
	}
	for _, c := range w.others {
		errs = append(errs, c.Close())
	}
	if w.Registry != nil {
		errs = append(errs, w.Registry.Close())
	}
	if w.Link != nil {
		for _, ns := range []*wan.Namespace{w.Link.Edge, w.Link.Cloud} {
			if ns != nil {
				errs = append(errs, ns.KillAll())
			}
		}
		errs = append(errs, w.Link.Close())
	}
	if w.restore != nil {
		errs = append(errs, w.restore())
	}
	errs = append(errs, RemoveTree(w.Dir))
	return errors.Join(errs...)
}

// Proxyd is a running proxyd.
type Proxyd struct {
	*process.Process
	// Address is its URL.
	Address string
	// Dir is its data directory.
	Dir string
}

// ProxydConfig of a proxyd.
type ProxydConfig struct {
	Binary string
	Dir    string // default: proxyd in the directory of the world
	Port   int    // default: ProxydPort
	// Registries are hosts that are spoken to in plain HTTP; default: that of the world.
	Registries []string
	Args       []string
	// TLS, if not nil, says that it speaks HTTPS, and how to see that it is ready.
	TLS *tls.Config
}

// StartProxyd starts proxyd at the far end and waits until it is ready.
func (w *World) StartProxyd(ctx context.Context, c ProxydConfig) (*Proxyd, error) {
	if c.Dir == "" {
		c.Dir = filepath.Join(w.Dir, "proxyd")
	}
	if c.Port == 0 {
		c.Port = ProxydPort
	}
	if c.Registries == nil {
		c.Registries = []string{w.Registry.Host}
	}
	listen := fmt.Sprintf("%s:%d", wan.CloudAddr, c.Port)
	args := []string{"serve", "--listen", listen, "--data-dir", c.Dir}
	for _, r := range c.Registries {
		args = append(args, "--plain-http-registry", r)
	}
	p, err := process.Start(w.Link.Cloud, "proxyd", exec.Command(c.Binary, append(args, c.Args...)...))
	if err != nil {
		return nil, err
	}
	px := &Proxyd{Process: p, Address: "http://" + listen, Dir: c.Dir}
	client := w.Link.Cloud.Client()
	defer client.CloseIdleConnections()
	if c.TLS != nil {
		px.Address = "https://" + listen
		client.Transport.(*http.Transport).TLSClientConfig = c.TLS
	}
	w.Closing(px)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return px, waitHTTP(ctx, client, px.Address+"/readyz", "", p.Done())
}

// Close stops proxyd.
func (p *Proxyd) Close() error {
	select {
	case <-p.Done():
		return nil
	default:
		return p.Stop()
	}
}

// removeStale removes directories of worlds whose process is gone.
func removeStale(parent string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, dirPrefix+"[0-9]*")) // the pattern is valid
	for _, d := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(d), dirPrefix), "-")
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			killBelow(d)
			_ = RemoveTree(d) // the next run tries again
		}
	}
}
