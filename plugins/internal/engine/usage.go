package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// DiskUsage is what one category of files takes.
type DiskUsage struct {
	Category string
	Path     string
	Files    int64
	Bytes    int64 // allocated on the disk, directories included
}

// DiskUsage measures what is below the root, in a fixed order. It looks at every file.
func (e *Engine) DiskUsage(ctx context.Context) ([]DiskUsage, error) {
	root := e.cfg.Root
	all := []DiskUsage{
		{Category: "objects", Path: e.objects.Dir()},
		{Category: "partial", Path: e.objects.PartialDir()},
		{Category: "toc", Path: e.tocDir()},
		{Category: "trees", Path: e.treeDir()},
		{Category: "lazyfs", Path: e.lazyState()},
		{Category: "snapshots", Path: filepath.Join(root, "snapshots")},
		{Category: "state", Path: filepath.Join(root, "state.db")},
		{Category: "state", Path: filepath.Join(root, "metadata.db")},
	}
	var st syscall.Stat_t
	if err := syscall.Stat(root, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: root, Err: err}
	}
	for i := range all {
		if err := all[i].measure(ctx, st.Dev); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// measure adds up what is at d.Path on the device dev: not what is mounted there.
func (d *DiskUsage) measure(ctx context.Context, dev uint64) error {
	return filepath.WalkDir(d.Path, func(path string, de fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // just removed, or never made
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		var st syscall.Stat_t
		switch err := syscall.Lstat(path, &st); {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		case st.Dev != dev && de.IsDir():
			return filepath.SkipDir
		}
		d.Bytes += st.Blocks * 512
		if !de.IsDir() {
			d.Files++
		}
		return nil
	})
}

// Collected is what was freed.
type Collected struct{ Images, Objects, Bytes int64 }

// collected counts what all sweeps have freed.
type collected struct{ images, objects, bytes atomic.Int64 }

func (c *collected) now() Collected {
	return Collected{c.images.Load(), c.objects.Load(), c.bytes.Load()}
}

// OnCollect registers what finds out which chains are live and calls Sweep.
func (e *Engine) OnCollect(fn func(context.Context) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.collect = fn
}

// Collect frees at once what no snapshot needs, which otherwise containerd's garbage
// collector makes the snapshotter do.
func (e *Engine) Collect(ctx context.Context) (Collected, error) {
	e.mu.Lock()
	fn := e.collect
	e.mu.Unlock()
	if fn == nil {
		return Collected{}, fmt.Errorf("no snapshotter uses the engine: %w", errdefs.ErrNotImplemented)
	}
	before := e.collected.now()
	err := fn(ctx)
	after := e.collected.now()
	return Collected{after.Images - before.Images, after.Objects - before.Objects, after.Bytes - before.Bytes}, err
}

// MissingFiles names up to limit files of an image that have not arrived, in the order
// of their names, and tells how many there are and how large.
func (e *Engine) MissingFiles(ctx context.Context, namespace, name string, limit int) (names []string, files, bytes int64, err error) {
	e.mu.Lock()
	r := e.refs[refKey{namespace: namespace, ref: name}]
	e.mu.Unlock()
	if r == nil {
		return nil, 0, 0, fmt.Errorf("image %q was not pulled here: %w", name, errdefs.ErrNotFound)
	}
	if r.img == nil {
		return nil, 0, 0, nil // plain
	}
	t, err := e.mergeTOCs(e.layersOf(r.img))
	if err != nil {
		return nil, 0, 0, err
	}
	err = t.Walk(func(path string, n *toc.Node) error {
		if n.Object.IsZero() || e.objects.Has(n.Object) {
			return nil
		}
		files++
		bytes += n.Size
		if len(names) < limit {
			names = append(names, "/"+path)
		}
		return ctx.Err()
	})
	return names, files, bytes, err
}
