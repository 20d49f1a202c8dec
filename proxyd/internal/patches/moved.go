package patches

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Seen takes note of where a tag leads. If it led elsewhere before, the patches that
// workers will want are made. The image is ingested.
func (c *Cache) Seen(ctx context.Context, repo, tag, platform string, manifest toc.Digest) error {
	if c.cfg.Bytes <= 0 || tag == "" {
		return nil
	}
	before, err := c.cfg.Meta.Resolved(ctx, repo, tag, platform)
	switch {
	case errors.Is(err, meta.ErrNotFound):
	case err != nil:
		return err
	case before == manifest:
		return nil
	}
	if err := c.cfg.Meta.PutResolved(ctx, meta.Resolved{Repo: repo, Tag: tag, Platform: platform, Manifest: manifest}); err != nil {
		return err
	}
	if !before.IsZero() {
		c.enqueue(task{move: &move{repo: repo, from: before, to: manifest}})
	}
	return nil
}

// expand asks for the patches between two images.
func (c *Cache) expand(ctx context.Context, m move) error {
	from, err := c.contents(ctx, m.repo, m.from)
	if errors.Is(err, meta.ErrNotFound) {
		return nil // it was forgotten
	}
	if err != nil {
		return err
	}
	to, err := c.contents(ctx, m.repo, m.to)
	if err != nil {
		return err
	}
	jobs := pairs(from, to)
	c.cfg.Log.Info("a tag has moved", "repo", m.repo, "from", m.from, "to", m.to, "patches", len(jobs))
	for _, j := range jobs {
		c.enqueue(task{job: &j})
	}
	return nil
}

// contents are the files of an image that are large enough.
type contents struct {
	objects map[toc.Digest]delta.Source
	order   []string // the paths, in the order of the tree
	paths   map[string]toc.Digest
	alike   map[string]toc.Digest // by path with numbers normalised
}

func (c *Cache) contents(ctx context.Context, repo string, manifest toc.Digest) (*contents, error) {
	img, err := c.cfg.Meta.Image(ctx, repo, manifest)
	if err != nil {
		return nil, err
	}
	out := &contents{objects: map[toc.Digest]delta.Source{}, paths: map[string]toc.Digest{}, alike: map[string]toc.Digest{}}
	tocs := make([]*toc.TOC, len(img.Layers))
	for i, l := range img.Layers {
		rec, err := c.cfg.Meta.Layer(ctx, l.DiffID)
		if err != nil {
			return nil, err
		}
		enc, err := c.cfg.TOCs.TOC(ctx, rec)
		if err != nil {
			return nil, fmt.Errorf("table of contents of layer %s: %w", l.DiffID, err)
		}
		if tocs[i], err = toc.Decode(enc); err != nil {
			return nil, fmt.Errorf("table of contents of layer %s: %w", l.DiffID, err)
		}
		for n := range tocs[i].Objects {
			o := &tocs[i].Objects[n]
			out.objects[o.Digest] = delta.Source{Object: o, Layer: l.DiffID, Number: n}
		}
	}
	tree, err := toc.Merge(tocs...)
	if err != nil {
		return nil, err
	}
	return out, tree.Walk(func(path string, n *toc.Node) error {
		if n.Type == toc.TypeReg && n.Size >= MinSize {
			out.order = append(out.order, path)
			out.paths[path] = n.Object
			out.alike[normal(path)] = n.Object
		}
		return nil
	})
}

// normal replaces each number in a path by one digit: libfoo.so.1.2.30 and
// libfoo.so.1.2.31 become the same.
func normal(path string) string {
	var b strings.Builder
	digit := false
	for _, r := range path {
		if r >= '0' && r <= '9' {
			if !digit {
				b.WriteByte('0')
			}
			digit = true
			continue
		}
		digit = false
		b.WriteRune(r)
	}
	return b.String()
}

// pairs are the objects of to that from has not, each with the one most like it.
func pairs(from, to *contents) []job {
	var jobs []job
	done := map[toc.Digest]bool{}
	for _, path := range to.order {
		d := to.paths[path]
		if _, has := from.objects[d]; has || done[d] {
			continue
		}
		base, ok := from.paths[path]
		if !ok {
			base, ok = from.alike[normal(path)]
		}
		if ok {
			done[d] = true
			jobs = append(jobs, job{from.objects[base], to.objects[d]})
		}
	}
	return jobs
}
