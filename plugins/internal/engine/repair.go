package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/log"

	"github.com/starlight-delta/starlight/plugins/internal/lazyfs"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// refetch throws bad objects away and fetches them again: the images that need them
// are incomplete from now on, first on the disk, then in fact.
func (e *Engine) refetch(ctx context.Context, bad []toc.Digest) error {
	unlock, err := e.gate.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	lost := make(map[toc.Digest]bool, len(bad))
	for _, d := range bad {
		lost[d] = true
	}
	e.mu.Lock()
	var hit []*image
	for _, img := range e.images {
		if img.lacksAny(lost) {
			hit = append(hit, img)
		}
	}
	e.mu.Unlock()
	for _, img := range hit {
		rec := e.recordOf(img)
		rec.Complete = false
		if err := e.state.putImage(img.digest, rec); err != nil {
			return err
		}
	}
	if err := e.objects.Drop(bad...); err != nil {
		return err
	}
	e.mu.Lock()
	e.account()
	e.mu.Unlock()
	var errs []error
	for _, img := range hit {
		errs = append(errs, e.reopenImage(img))
	}
	return errors.Join(errs...)
}

// lacksAny tells whether an object in lost is in a layer of i, whose latches it opens.
func (i *image) lacksAny(lost map[toc.Digest]bool) (any bool) {
	for _, l := range i.layers {
		for _, o := range l.objects {
			if lost[o.Digest] {
				l.complete, any = false, true
				break
			}
		}
	}
	return any
}

// reopenImage makes the engine bring what img lacks.
func (e *Engine) reopenImage(img *image) error {
	p, err := e.missing(img)
	if err != nil {
		return err
	}
	if p.objects > 0 {
		if err := lazyfs.WriteIndex(e.indexPath(img.digest), p.list); err != nil {
			return err
		}
	}
	e.mu.Lock()
	img.rec.Complete = false
	img.pending = p
	e.recount(img)
	img.broadcast()
	e.mu.Unlock()
	e.watch(img)
	return nil
}

// tidy removes what a crash has left at the start: files and mounts that belong to
// nothing. It is no reason not to start.
func (e *Engine) tidy(ctx context.Context) {
	orphans, err := e.orphanFiles(time.Now())
	for _, name := range orphans {
		path := filepath.Join(e.cfg.Root, name)
		err = errors.Join(err, unmountTree(path), removeAll(path))
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("leftovers of a crash are not removed")
	}
	if len(orphans) > 0 {
		log.G(ctx).WithField("files", len(orphans)).Info("removed what a crash left behind")
	}
}

// tmpPattern is of files that are being written.
const tmpPattern = ".tmp-*"

// orphanFiles lists TOCs, trees and index files, as paths below the root, of layers,
// chains and images that are not known, and temporary files made before a time.
func (e *Engine) orphanFiles(before time.Time) ([]string, error) {
	e.mu.Lock()
	known := map[string]bool{}
	for d := range e.layers {
		known[e.tocPath(d)] = true
	}
	for id := range e.chains {
		known[e.treePath(id)] = true
		known[e.mountPath(id)] = true
	}
	for d := range e.images {
		known[e.indexPath(d)] = true
	}
	e.mu.Unlock()
	var orphans []string
	for _, dir := range []string{e.tocDir(), e.treeDir(), filepath.Dir(e.indexPath(toc.Digest{})), e.mountDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		for _, de := range entries {
			path := filepath.Join(dir, de.Name())
			if known[path] || strings.HasPrefix(de.Name(), ".") && !older(de, before) {
				continue
			}
			if rel, err := filepath.Rel(e.cfg.Root, path); err == nil {
				orphans = append(orphans, rel)
			}
		}
	}
	return orphans, nil
}

func older(de os.DirEntry, t time.Time) bool {
	st, err := de.Info()
	return err == nil && st.ModTime().Before(t)
}

// mergeTOCs reads the TOCs of layers and merges them.
func (e *Engine) mergeTOCs(layers []*layer) (*toc.Tree, error) {
	t, _, err := e.readTree(layers)
	return t, err
}

func (e *Engine) readTree(layers []*layer) (*toc.Tree, []*toc.TOC, error) {
	tocs := make([]*toc.TOC, len(layers))
	for i, l := range layers {
		var err error
		if tocs[i], err = e.readTOC(l); err != nil {
			return nil, nil, err
		}
	}
	t, err := toc.Merge(tocs...)
	return t, tocs, err
}

// missing is what img lacks now.
func (e *Engine) missing(img *image) (*pending, error) {
	t, tocs, err := e.readTree(e.layersOf(img))
	if err != nil {
		return nil, err
	}
	p, _, _, err := newPending(t, tocs, e.objects.Has)
	return p, err
}

// removeAll removes files that may have gone already.
func removeAll(paths ...string) error {
	var errs []error
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
