package server

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/pack"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// library prepares layers and images for planning, and keeps what was used last.
type library struct {
	cfg    Config
	layers *cache[toc.Digest, *layer] // by diff ID
	images *cache[toc.Digest, *image] // by manifest
	packs  *cache[string, *packFile]  // by key
	tocs   *cache[tocPair, *tocFrame]
	// building bounds how many images are prepared at a time: that needs the
	// whole TOCs and the merged tree.
	building slots
}

// layer is what planning needs of a layer, and its TOC ready to be sent.
type layer struct {
	rec   *meta.Layer
	toc   *toc.TOC // without Entries
	names *delta.Names
	tocFrame
}

// image is an image ready to be planned.
type image struct {
	manifest toc.Digest
	layers   []*meta.Layer
	repo     string // that it was first asked for in
	delta    *delta.Image
	order    delta.Order // without traces of the image itself, see library.current
}

func newLibrary(cfg Config) *library {
	share := cfg.Limits.CacheBytes / 6
	return &library{
		cfg:      cfg,
		layers:   newCache[toc.Digest, *layer](2*share, nil),
		images:   newCache[toc.Digest, *image](2*share, nil),
		packs:    newCache[string](share, func(p *packFile) { p.release() }),
		tocs:     newCache[tocPair, *tocFrame](share, nil),
		building: make(slots, 2),
	}
}

func (l *library) close() error {
	l.images.close()
	l.layers.close()
	l.packs.close()
	l.tocs.close()
	return nil
}

// forget gives back what is kept of layers that are deleted, and of images with them.
func (l *library) forget(layers []meta.LayerUse, manifests []toc.Digest) {
	for _, u := range layers {
		l.layers.remove(u.DiffID)
		l.packs.remove(u.PackKey)
	}
	l.images.remove(manifests...)
}

// reachable tells whether the blob store answers.
func (l *library) reachable(ctx context.Context) error {
	if _, err := l.cfg.Blobs.Stat(ctx, "ready"); err != nil && !errors.Is(err, blob.ErrNotExist) {
		return err
	}
	return nil
}

// layer returns a layer by its record.
func (l *library) layer(ctx context.Context, m *meta.Layer) (*layer, error) {
	return l.layers.get(ctx, m.DiffID, l.cfg.Limits.Plan, func(ctx context.Context) (*layer, int64, error) {
		encoded, t, err := l.decode(ctx, m)
		if err != nil {
			return nil, 0, err
		}
		ly := newLayer(m, encoded, t)
		return ly, ly.cost(), nil
	})
}

// have returns a layer that a worker says to have, or nil if proxyd does not
// know it.
func (l *library) have(ctx context.Context, diffID toc.Digest) (*layer, error) {
	return l.layers.get(ctx, diffID, l.cfg.Limits.Plan, func(ctx context.Context) (*layer, int64, error) {
		m, err := l.cfg.Meta.Layer(ctx, diffID)
		if err != nil {
			return nil, 0, err
		}
		encoded, t, err := l.decode(ctx, m)
		if err != nil {
			return nil, 0, err
		}
		ly := newLayer(m, encoded, t)
		return ly, ly.cost(), nil
	})
}

func (l *library) decode(ctx context.Context, m *meta.Layer) ([]byte, *toc.TOC, error) {
	encoded, err := l.cfg.Ingester.TOC(ctx, m)
	if err != nil {
		return nil, nil, fmt.Errorf("table of contents of layer %s: %w", m.DiffID, err)
	}
	t, err := toc.Decode(encoded)
	if err != nil {
		return nil, nil, fmt.Errorf("table of contents of layer %s: %w", m.DiffID, err)
	}
	return encoded, t, nil
}

func newLayer(m *meta.Layer, encoded []byte, t *toc.TOC) *layer {
	return &layer{rec: m, toc: &toc.TOC{DiffID: t.DiffID, Objects: t.Objects}, names: delta.NewNames(t), tocFrame: newTOCFrame(encoded)}
}

func (ly *layer) cost() int64 {
	const object = 64 // bytes of a toc.Object
	n := int64(len(ly.payload)) + ly.names.Cost() + 256
	for i := range ly.toc.Objects {
		n += object + 32*int64(len(ly.toc.Objects[i].Pieces))
	}
	return n
}

// image prepares an image all of whose layers are ingested.
func (l *library) image(ctx context.Context, img *registry.Image, layers []*meta.Layer) (*image, error) {
	return l.images.get(ctx, img.Manifest.Digest, l.cfg.Limits.Plan, func(ctx context.Context) (*image, int64, error) {
		select {
		case l.building <- struct{}{}:
			defer func() { <-l.building }()
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
		return l.build(ctx, img, layers)
	})
}

func (l *library) build(ctx context.Context, img *registry.Image, layers []*meta.Layer) (*image, int64, error) {
	tocs := make([]*toc.TOC, len(layers))
	for i, m := range layers {
		var err error
		if _, tocs[i], err = l.decode(ctx, m); err != nil {
			return nil, 0, err
		}
	}
	tree, err := toc.Merge(tocs...)
	if err != nil {
		return nil, 0, fmt.Errorf("merge the layers: %w", err)
	}
	d, err := delta.NewImage(tocs, tree)
	if err != nil {
		return nil, 0, err
	}
	im := &image{manifest: img.Manifest.Digest, repo: img.Name, layers: layers, delta: d}
	var cost int64
	for i := range d.Objects {
		cost += 320 + 32*int64(len(d.Objects[i].Pieces)) // measured, with the maps
	}
	if im.order, err = l.order(ctx, im, img, tree); err != nil {
		return nil, 0, err
	}
	if im.order, err = l.inherit(ctx, img.Name, im, tree); err != nil {
		return nil, 0, err
	}
	return im, cost + 4<<10, nil
}

// packFile is an open pack. It is closed when the cache and all who acquired it
// have released it.
type packFile struct {
	*pack.Reader
	refs
}

// pack opens the pack of a layer; it must be released.
func (l *library) pack(ctx context.Context, key string) (*packFile, error) {
	for {
		p, err := l.packs.get(ctx, key, l.cfg.Limits.Plan, func(ctx context.Context) (*packFile, int64, error) {
			b, err := l.cfg.Blobs.Open(ctx, key)
			if err != nil {
				return nil, 0, fmt.Errorf("open pack: %w", err)
			}
			r, err := pack.NewReader(b)
			if err != nil {
				return nil, 0, errors.Join(fmt.Errorf("open pack %q: %w", key, err), b.Close())
			}
			p := &packFile{r, newRefs(r)}
			const perObject = 48 // bytes of the index in memory
			return p, perObject*int64(r.Objects()) + 4<<10, nil
		})
		if err != nil {
			return nil, err
		}
		if p.acquire() {
			return p, nil
		}
		// It was evicted and closed since; the next get loads it again.
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// packSet is the packs that one request uses. It is safe for concurrent use.
type packSet struct {
	l    *library
	keys []string

	mu   sync.Mutex
	open map[int]*packFile // guarded by mu
}

func (l *library) packSet(keys []string) *packSet {
	return &packSet{l: l, keys: keys, open: make(map[int]*packFile)}
}

// packKeys of the layers of an image.
func (im *image) packKeys() []string {
	keys := make([]string, len(im.layers))
	for i, m := range im.layers {
		keys[i] = m.PackKey
	}
	return keys
}

// pack is a delta.Packs.
func (s *packSet) pack(ctx context.Context, layer int) (delta.Pack, error) { return s.get(ctx, layer) }

func (s *packSet) get(ctx context.Context, layer int) (*packFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.open[layer]; p != nil {
		return p, nil
	}
	p, err := s.l.pack(ctx, s.keys[layer])
	if err != nil {
		return nil, err
	}
	s.open[layer] = p
	return p, nil
}

// close releases the packs.
func (s *packSet) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.open {
		p.release()
	}
	clear(s.open)
}
