package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins/internal/erofsimg"
	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// chain is a stack of layers that a root file system can be made of.
type chain struct {
	id     digest.Digest
	layers []*layer
	parent *chain // without the uppermost layer; nil: has only one

	// size and files of the objects that count for it. Engine.mu guards them.
	size, files int64

	mu sync.Mutex // held while the tree is built or mounted
}

// Lower is a read-only root file system for overlayfs, with the options
// metacopy=on and redirect_dir=on.
type Lower struct {
	// Metadata is the mount point of the EROFS image.
	Metadata string
	// Data are the layers with contents: the objects, and the lazy file system
	// unless Complete.
	Data []string
	// Stacking is how Data come below Metadata.
	Stacking erofsimg.Stacking
	// Complete: every object is local.
	Complete bool
}

func (e *Engine) treePath(id digest.Digest) string { return e.treePathFor(id, e.stacking) }

// treePathFor gives the images for other kernels other names: a machine may boot
// another one than last time.
func (e *Engine) treePathFor(id digest.Digest, s erofsimg.Stacking) string {
	suffix := ".erofs"
	if s == erofsimg.Ordinary {
		suffix = ".hiding.erofs"
	}
	return filepath.Join(e.treeDir(), id.Encoded()+suffix)
}

func (e *Engine) mountPath(id digest.Digest) string {
	return filepath.Join(e.mountDir(), id.Encoded())
}

// HasChain tells whether Lower(chain) can give a root file system.
func (e *Engine) HasChain(id digest.Digest) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.chains[id] != nil
}

// Lower mounts the tree of a chain if it is not mounted, building it if it has
// gone, and returns it. The mount stays until Sweep finds the chain dead.
func (e *Engine) Lower(ctx context.Context, id digest.Digest) (Lower, error) {
	e.mu.Lock()
	c := e.chains[id]
	e.mu.Unlock()
	if c == nil {
		return Lower{}, fmt.Errorf("chain %s: %w", id, errdefs.ErrNotFound)
	}
	l := Lower{Metadata: e.mountPath(id), Data: []string{e.objects.Dir()}, Stacking: e.stacking, Complete: e.complete(c)}
	if !l.Complete {
		lazy, err := e.startLazy()
		if err != nil {
			return Lower{}, err
		}
		l.Data = append(l.Data, lazy)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if mounted, err := isEROFS(l.Metadata); mounted || err != nil {
		return l, err
	}
	if err := e.ensureTreeLocked(ctx, c); err != nil {
		return Lower{}, err
	}
	if err := os.MkdirAll(l.Metadata, 0o700); err != nil {
		return Lower{}, err
	}
	failpoint.Here("tree-mountpoint-made")
	return l, erofsimg.Mount(e.treePath(id), l.Metadata)
}

func isEROFS(dir string) (bool, error) {
	var st unix.Statfs_t
	switch err := unix.Statfs(dir, &st); {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return st.Type == unix.EROFS_SUPER_MAGIC_V1, nil
}

// complete tells whether all objects of c are local.
func (e *Engine) complete(c *chain) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, img := range e.images {
		if img.rec.Complete && img.top() == c && sameTOCs(img.layers, c.layers) {
			return true
		}
	}
	for _, l := range c.layers {
		if e.lacks(l); !l.complete {
			return false
		}
	}
	return true
}

// build writes the image of a tree unless it is there.
func (e *Engine) build(c *chain, t *toc.Tree) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := os.Stat(e.treePath(c.id)); err == nil {
		return nil
	}
	return e.writeTree(c, t, false)
}

// ensureTree makes the tree of c if it is not there.
func (e *Engine) ensureTree(ctx context.Context, c *chain) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return e.ensureTreeLocked(ctx, c)
}

func (e *Engine) ensureTreeLocked(ctx context.Context, c *chain) error {
	if _, err := os.Stat(e.treePath(c.id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return e.rebuild(ctx, c)
}

// stack returns the layers of c.
func (e *Engine) stack(c *chain) []*layer {
	e.mu.Lock()
	defer e.mu.Unlock()
	return c.layers
}

// rebuild makes the tree of c from its TOCs. c.mu is held.
func (e *Engine) rebuild(ctx context.Context, c *chain) error {
	t, err := e.mergeTOCs(e.stack(c))
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("chain %s: %w", c.id, err)
	}
	return e.writeTree(c, t, true)
}

// writeTree writes the EROFS image of c. The tree of an incomplete image need not
// be synced: it is made anew after a power cut.
func (e *Engine) writeTree(c *chain, t *toc.Tree, sync bool) (err error) {
	f, err := os.CreateTemp(e.treeDir(), tmpPattern)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("tree of chain %s: %w", c.id, err), os.Remove(f.Name()))
		}
	}()
	err = erofsimg.Write(f, t, e.stacking)
	if err == nil && sync {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	failpoint.Here("tree-written")
	return os.Rename(f.Name(), e.treePath(c.id))
}
