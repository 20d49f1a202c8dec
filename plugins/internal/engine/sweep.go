package engine

import (
	"context"
	"errors"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/plugins/internal/erofsimg"
	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Sweep drops chains that are not in live, with their trees, TOCs and objects,
// unless a pull in progress needs them.
func (e *Engine) Sweep(ctx context.Context, live []digest.Digest) error {
	unlock, err := e.gate.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	dead := e.unlink(live)
	var errs []error
	for _, img := range dead.images {
		// What it fetches would be garbage. What others wait for they ask for anew.
		img.stop()
	}
	for _, img := range dead.images {
		img.work.Wait()
		errs = append(errs, removeAll(e.indexPath(img.digest)))
		failpoint.Here("index-removed")
	}
	for _, c := range dead.chains {
		errs = append(errs, e.dropTree(c))
		failpoint.Here("tree-removed")
	}
	// Records before TOCs: an image whose TOCs are gone would be forgotten with a
	// warning at the next start.
	var ds []toc.Digest
	for _, img := range dead.images {
		ds = append(ds, img.digest)
	}
	errs = append(errs, e.state.drop(ds, dead.refs))
	for _, l := range dead.layers {
		failpoint.Here("image-forgotten")
		errs = append(errs, removeAll(e.tocPath(l.diffID)))
		failpoint.Here("toc-removed")
	}
	e.mu.Lock()
	e.asked.Clear()
	kept := map[toc.Digest]struct{}{}
	for _, img := range e.images {
		for _, l := range img.layers {
			for _, o := range l.objects {
				kept[o.Digest] = struct{}{}
			}
		}
	}
	e.mu.Unlock()
	bytes, n, err := e.objects.Sweep(func(d toc.Digest) bool { _, ok := kept[d]; return ok })
	e.collected.images.Add(int64(len(dead.images)))
	e.collected.objects.Add(n)
	e.collected.bytes.Add(bytes)
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
	chains, layers := map[*chain]bool{}, map[toc.Digest]bool{}
	for d, img := range e.images {
		if !img.alive(alive) {
			delete(e.images, d)
			img.gone = true
			dead.images = append(dead.images, img)
			continue
		}
		for _, c := range img.chains {
			chains[c] = true
		}
		for _, l := range img.layers {
			layers[l.diffID] = true
		}
	}
	for id, c := range e.chains {
		if !chains[c] {
			delete(e.chains, id)
			dead.chains = append(dead.chains, c)
		}
	}
	for d, l := range e.layers {
		if !layers[d] {
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
	if len(dead.images) > 0 {
		e.account()
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
	return e.dropTreeLocked(c)
}

// dropTreeLocked removes the tree of c and its mount, which those who use it keep.
// c.mu is held.
func (e *Engine) dropTreeLocked(c *chain) error {
	dir := e.mountPath(c.id)
	if err := unmountTree(dir); err != nil {
		return err
	}
	failpoint.Here("tree-unmounted")
	return removeAll(dir, e.treePath(c.id))
}

func unmountTree(dir string) error {
	mounted, err := isEROFS(dir)
	if err == nil && mounted {
		err = erofsimg.Unmount(dir)
	}
	return err
}
