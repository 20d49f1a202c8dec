package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/log"

	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
	"github.com/starlight-delta/starlight/plugins/internal/lazyfs"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// load reads the state and returns the images that are incomplete.
func (e *Engine) load(ctx context.Context) ([]*image, error) {
	var lost []toc.Digest
	records := map[toc.Digest]imageRecord{}
	err := e.state.load(
		func(d toc.Digest, r imageRecord) { records[d] = r },
		func(k refKey, r refRecord) { e.refs[k] = &ref{rec: r} })
	if err != nil {
		return nil, err
	}
	var incomplete []*image
	for d, r := range records {
		layers, err := e.loadLayers(r)
		if errors.Is(err, toc.ErrVersion) {
			// To forget them would take the files of running containers.
			return nil, fmt.Errorf("%s is of another version of Starlight, and nothing in it was changed; "+
				"go back to that version, or end its containers, run ctr-starlight reset, and pull again: %w", e.cfg.Root, err)
		}
		if err != nil {
			// Without its TOCs an image is nothing; the next pull brings them anew.
			log.G(ctx).WithError(err).WithField("image", d).Warn("image is forgotten")
			lost = append(lost, d)
			continue
		}
		img := e.addImage(d, r, layers)
		img.source = source{ref: r.Name + "@" + d.String(), host: hostOf(r.Name), platform: r.Platform, ticket: r.Ticket}
		e.addBlobs(img)
		if !r.Complete {
			incomplete = append(incomplete, img)
		}
	}
	for _, r := range e.refs {
		r.img = e.images[r.rec.Manifest]
	}
	rebooted, err := e.state.rebooted(e.cfg.Root)
	if err != nil {
		return nil, err
	}
	if rebooted {
		if err := e.recheck(ctx, incomplete); err != nil {
			return nil, err
		}
	}
	for _, img := range incomplete {
		if err := e.ensureIndex(img); err != nil {
			return nil, err
		}
	}
	if err := e.objects.KeepPartial(wantedBy(incomplete)); err != nil {
		return nil, err
	}
	e.account()
	return incomplete, e.state.drop(lost, nil)
}

func (e *Engine) loadLayers(r imageRecord) ([]*layer, error) {
	var out []*layer
	for _, lr := range r.Layers {
		l := e.layers[lr.DiffID]
		if l == nil {
			l = &layer{diffID: lr.DiffID, encoded: lr.TOC}
			if lr.TOC.IsZero() { // written by a version that did not keep it
				var err error
				if l.encoded, err = hashFile(e.tocPath(lr.DiffID)); err != nil {
					return nil, err
				}
			}
			t, err := e.readTOC(l)
			if err != nil {
				return nil, err
			}
			l.objects = t.Objects
			e.layers[lr.DiffID] = l
		}
		out = append(out, l)
	}
	return out, nil
}

// wantedBy tells of objects whether they are in one of the images.
func wantedBy(images []*image) func(toc.Digest) bool {
	wanted := map[toc.Digest]bool{}
	for _, img := range images {
		for _, l := range img.layers {
			for _, o := range l.objects {
				wanted[o.Digest] = true
			}
		}
	}
	return func(d toc.Digest) bool { return wanted[d] }
}

// recheck is for the start after a power cut. Durable are the objects and trees of
// images that were marked complete, as all was synced before. All else may be torn:
// objects are hashed, and trees made anew.
func (e *Engine) recheck(ctx context.Context, incomplete []*image) error {
	durable := map[toc.Digest]bool{}
	for _, img := range e.images {
		if !img.rec.Complete {
			continue
		}
		// Its layers are too much: what upper ones hide may have come later, with
		// another image.
		t, err := e.mergeTOCs(img.layers)
		if err != nil {
			return err
		}
		err = t.Walk(func(_ string, n *toc.Node) error {
			durable[n.Object] = true
			return nil
		})
		if err != nil {
			return err
		}
	}
	var doubtful []toc.Digest
	for _, d := range e.objects.All() {
		if !durable[d] {
			doubtful = append(doubtful, d)
		}
	}
	for _, img := range incomplete {
		for _, c := range img.chains {
			if err := errors.Join(e.dropTree(c), removeAll(e.indexPath(img.digest))); err != nil {
				return err
			}
		}
	}
	bad, err := e.objects.Verify(ctx, doubtful)
	if len(bad) > 0 {
		log.G(ctx).WithField("objects", len(bad)).Warn("objects lost in a crash will be fetched again")
	}
	return err
}

// ensureIndex makes the objects of an incomplete image known to the lazy file system.
func (e *Engine) ensureIndex(img *image) error {
	path := e.indexPath(img.digest)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return lazyfs.WriteIndex(path, img.objectList().list)
}

// writeDurably replaces a file so that after a crash it is there whole, or not.
func writeDurably(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tmpPattern)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	failpoint.Here("toc-written")
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	failpoint.Here("toc-renamed")
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	return f.Close()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
