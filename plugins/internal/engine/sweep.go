package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/plugins/internal/erofsimg"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Sweep drops chains that are not in live, with their trees, TOCs and objects,
// unless a pull in progress needs them.
func (e *Engine) Sweep(ctx context.Context, live []digest.Digest) error {
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	dead := e.unlink(live)
	var errs []error
	for _, img := range dead.images {
		if img.stop != nil {
			img.stop()
		}
		if err := os.Remove(e.indexPath(img.digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, c := range dead.chains {
		errs = append(errs, e.dropTree(c))
	}
	// Records before TOCs: an image whose TOCs are gone would be forgotten with a
	// warning at the next start.
	var ds []toc.Digest
	for _, img := range dead.images {
		ds = append(ds, img.digest)
	}
	errs = append(errs, e.state.drop(ds, dead.refs))
	for _, l := range dead.layers {
		if err := os.Remove(e.tocPath(l.diffID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	e.mu.Lock()
	kept := map[toc.Digest]struct{}{}
	for _, l := range e.layers {
		for _, o := range l.objects {
			kept[o.Digest] = struct{}{}
		}
	}
	e.mu.Unlock()
	bytes, n, err := e.objects.Sweep(func(d toc.Digest) bool { _, ok := kept[d]; return ok })
	if n > 0 {
		log.G(ctx).WithFields(log.Fields{"images": len(dead.images), "objects": n, "bytes": bytes}).Info("collected")
	}
	return errors.Join(append(errs, err)...)
}

type garbage struct {
	images []*image
	chains []*chain
	layers []*layer
	refs   []refKey
}

// unlink takes out of the engine what nobody needs. An image stays while any of its
// chains is live, for it is the source of their objects.
func (e *Engine) unlink(live []digest.Digest) (dead garbage) {
	e.mu.Lock()
	defer e.mu.Unlock()
	alive := map[digest.Digest]bool{}
	for _, id := range live {
		alive[id] = true
	}
	for id := range e.pins {
		alive[id] = true
	}
	chains, layers := map[*chain]bool{}, map[*layer]bool{}
	for d, img := range e.images {
		if !img.alive(alive) {
			delete(e.images, d)
			dead.images = append(dead.images, img)
			continue
		}
		for _, c := range img.chains {
			chains[c] = true
		}
		for _, l := range img.layers {
			layers[l] = true
		}
	}
	for id, c := range e.chains {
		if !chains[c] {
			delete(e.chains, id)
			dead.chains = append(dead.chains, c)
		}
	}
	for d, l := range e.layers {
		if !layers[l] {
			delete(e.layers, d)
			dead.layers = append(dead.layers, l)
		}
	}
	for d, b := range e.blobs {
		if e.images[b.img.digest] != b.img {
			delete(e.blobs, d)
			for _, img := range e.images {
				e.addBlobs(img) // another image may have the layer
			}
		}
	}
	for k, r := range e.refs {
		if r.img != nil && e.images[r.img.digest] != r.img {
			delete(e.refs, k)
			dead.refs = append(dead.refs, k)
		}
	}
	return dead
}

func (i *image) alive(live map[digest.Digest]bool) bool {
	for _, c := range i.chains {
		if live[c.id] {
			return true
		}
	}
	return false
}

func (e *Engine) dropTree(c *chain) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	dir := e.mountPath(c.id)
	mounted, err := isEROFS(dir)
	if err == nil && mounted {
		err = erofsimg.Unmount(dir)
	}
	if err != nil {
		return err
	}
	for _, path := range []string{dir, e.treePath(c.id)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
