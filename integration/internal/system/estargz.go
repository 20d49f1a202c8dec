package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/needs"
	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// EStargz is stock containerd with the snapshotter of eStargz. Images are
// converted, in each layer with the files first that a recorded start opened.
type EStargz struct {
	Binaries tools.Binaries
	// Stargz is the program with snapshotter and converter.
	Stargz string
}

// Name implements [System].
func (EStargz) Name() string { return "estargz" }

// Publish implements [System].
func (e EStargz) Publish(ctx context.Context, w *sandbox.World, versions []corpus.Image) ([]string, error) {
	var refs []string
	for _, v := range versions {
		layout, err := e.convert(ctx, w, v)
		if err != nil {
			return nil, fmt.Errorf("convert %s:%s: %w", v.Name, v.Tag, err)
		}
		ref, err := w.Push(ctx, layout, v.Name+"-esgz", v.Tag)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// convert makes the layout of the converted image, or finds it in the cache.
func (e EStargz) convert(ctx context.Context, w *sandbox.World, im corpus.Image) (string, error) {
	dir, err := corpus.Dir()
	if err != nil {
		return "", err
	}
	layout := filepath.Join(dir, "estargz", im.Name, im.Tag+"-"+im.Manifest.Encoded()[:12])
	if _, err := os.Stat(layout); err == nil {
		return layout, nil
	}
	start, err := needs.Of(ctx, w, e.Binaries, im)
	if err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(dir, "estargz-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	first := tmp + ".first"
	defer os.Remove(first)
	if err := os.WriteFile(first, []byte(strings.Join(start.Paths(), "\n")), 0o600); err != nil {
		return "", err
	}
	if _, err := process.Run(nil, exec.CommandContext(ctx, e.Stargz, "convert",
		"-from", im.Layout, "-tag", im.Tag, "-to", tmp, "-first", first)); err != nil {
		return "", err
	}
	return layout, errors.Join(os.MkdirAll(filepath.Dir(layout), 0o755), os.Rename(tmp, layout))
}

// Node implements [System].
func (e EStargz) Node(ctx context.Context, w *sandbox.World, _, name string) (_ *Node, err error) {
	root := filepath.Join(w.Dir, name+"-stargz")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	socket := filepath.Join(root, "grpc.sock")
	p, err := process.Start(w.Link.Edge, "stargz", exec.Command(e.Stargz, "serve",
		"-socket", socket, "-root", root, "-plain-http", w.Registry.Host))
	if err != nil {
		return nil, err
	}
	n := &Node{Snapshotter: "stargz", Others: map[string]*process.Process{"stargz": p}, State: []string{root}}
	w.Closing(stopper{p})
	wait, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := p.WaitLog(wait, "serving on"); err != nil {
		return nil, err
	}
	n.Node, err = w.StartNode(ctx, sandbox.NodeConfig{Name: name, Binaries: e.Binaries, Config: fmt.Sprintf(`[proxy_plugins.stargz]
  type = "snapshot"
  address = %q
  [proxy_plugins.stargz.exports]
    root = %q
    enable_remote_snapshot_annotations = "true"
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux"
  snapshotter = "stargz"
`, socket, root)})
	// It fetches everything in the background, and says so only in its log.
	n.Complete = func(ctx context.Context, _ string) (time.Time, error) { return quiet(ctx, w) }
	return n, err
}

// quiet waits until nothing comes over the link any more, and returns since when.
func quiet(ctx context.Context, w *sandbox.World) (time.Time, error) {
	const still = 8 * time.Second // it fetches in the background 5 s after the last read
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	var bytes int64
	since := time.Now()
	for {
		c, err := w.Link.Counters()
		if err != nil {
			return since, err
		}
		if c.Down.Bytes != bytes {
			bytes, since = c.Down.Bytes, time.Now()
		}
		if time.Since(since) > still {
			return since, nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return since, ctx.Err()
		}
	}
}

// stopper stops a process that still runs when the world ends.
type stopper struct{ p *process.Process }

// Close implements io.Closer.
func (s stopper) Close() error {
	select {
	case <-s.p.Done():
		return nil
	default:
		return s.p.Stop()
	}
}
