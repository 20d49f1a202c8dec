package engine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/plugins/internal/delta"
	"github.com/starlight-delta/starlight/plugins/internal/lazyfs"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// layer is a layer whose TOC is on the disk.
type layer struct {
	diffID  toc.Digest
	encoded toc.Digest // sha256 of the encoded TOC
	objects []toc.Object
	// complete is a latch: all objects are local. It holds while the layer is
	// known, because Sweep spares the objects of known layers.
	complete bool
}

// image is an image by its manifest. Fields below pending are used while it is
// incomplete. Engine.mu guards what changes.
type image struct {
	digest toc.Digest
	rec    imageRecord
	layers []*layer
	chains []*chain // of 1, 2, … all layers
	source source
	meter  meter

	pending *pending // nil: complete
	watched bool     // a supervisor runs
	stop    context.CancelFunc
	changed chan struct{} // closed and replaced when waiting may have become pointless
	main    *stream       // that brings the image now, or nil
	failure error         // of the last stream
	demands *demands
}

// source is how to ask for an image again. Credentials live in memory only.
type source struct {
	ref      string // host/repo@digest of the manifest
	host     string
	platform string
	creds    *wire.Credentials
	registry fetchFunc
}

// pending is what an image lacks.
type pending struct {
	list  []toc.Object // the object list of the wire
	index map[toc.Digest]uint32
	need  []bool // by index: in the tree and not local
	// objects and bytes that need counts.
	objects, bytes int64
}

// blob is a layer as the registry has it.
type blob struct {
	BlobInfo
	img *image
}

// top is the chain of the whole image; images without layers have none.
func (i *image) top() *chain {
	if len(i.chains) == 0 {
		return nil
	}
	return i.chains[len(i.chains)-1]
}

// broadcast wakes who waits for a change of i. Engine.mu is held.
func (i *image) broadcast() {
	close(i.changed)
	i.changed = make(chan struct{})
}

func newPending(tree *toc.Tree, tocs []*toc.TOC, has func(toc.Digest) bool) (p *pending, objects, bytes int64, err error) {
	p = &pending{list: toc.ObjectList(tocs...)}
	p.index = make(map[toc.Digest]uint32, len(p.list))
	p.need = make([]bool, len(p.list))
	for i, o := range p.list {
		p.index[o.Digest] = uint32(i)
	}
	seen := make([]bool, len(p.list))
	err = tree.Walk(func(name string, n *toc.Node) error {
		if n.Type != toc.TypeReg || n.Size == 0 {
			return nil
		}
		i, ok := p.index[n.Object]
		if !ok {
			return fmt.Errorf("object of %q is in no layer: %w", name, toc.ErrInvalid)
		}
		if seen[i] {
			return nil
		}
		seen[i] = true
		objects++
		bytes += n.Size
		if !has(n.Object) {
			p.need[i] = true
			p.objects++
			p.bytes += n.Size
		}
		return nil
	})
	return p, objects, bytes, err
}

// admit makes an image of a checked header: TOCs, state and index on the disk,
// chains and blobs known, the objects that s will bring claimed. The gate is held.
func (e *Engine) admit(ctx context.Context, m *delta.Metadata, s *stream, src source, name string) (*image, error) {
	d, err := toc.ParseDigest(m.Manifest.Digest.String())
	if err != nil {
		return nil, err
	}
	src.ref = name + "@" + m.Manifest.Digest.String()
	layers, tocs, err := e.admitLayers(m)
	if err != nil {
		return nil, err
	}
	tree, err := toc.Merge(tocs...)
	if err != nil {
		return nil, err
	}
	p, objects, bytes, err := newPending(tree, tocs, e.objects.Has)
	if err != nil {
		return nil, err
	}
	rec := imageRecord{
		Name: name, Platform: src.platform, Manifest: m.Manifest.Descriptor,
		Objects: objects, Bytes: bytes, Pulled: time.Now(),
	}
	for i, l := range m.Header.Layers {
		rec.Layers = append(rec.Layers, layerRecord{l.DiffID, m.ImageManifest.Layers[i]})
	}
	if p.objects > 0 {
		if err := lazyfs.WriteIndex(e.indexPath(d), p.list); err != nil {
			return nil, err
		}
	}
	e.mu.Lock()
	known := e.images[d]
	rec.Complete = known != nil && known.rec.Complete && p.objects == 0
	e.mu.Unlock()
	if err := e.state.putImage(d, rec); err != nil {
		return nil, err
	}
	e.mu.Lock()
	img := e.images[d]
	if img == nil {
		img = e.addImage(d, rec, layers)
	}
	if img.source.registry == nil || src.registry != nil {
		img.source = src
	}
	e.addBlobs(img)
	if img.rec = rec; !rec.Complete {
		img.pending = p
		e.recount(img)
	}
	s.img = img
	for i, needed := range p.need {
		if o := p.list[i].Digest; needed && e.claims[o] == nil {
			e.claims[o] = s
			s.claimed = append(s.claimed, o)
		}
	}
	top := img.top()
	e.mu.Unlock()
	if top != nil {
		e.background(func(ctx context.Context) {
			if err := e.build(top, tree); err != nil {
				log.G(ctx).WithError(err).WithField("chain", top.id).Warn("tree not built ahead of its first use")
			}
		})
	}
	return img, nil
}

// admitLayers writes the TOCs that were sent, and reads those that were not.
func (e *Engine) admitLayers(m *delta.Metadata) ([]*layer, []*toc.TOC, error) {
	var layers []*layer
	var tocs []*toc.TOC
	for _, h := range m.Header.Layers {
		t, sent := m.TOCs[h.DiffID]
		e.mu.Lock()
		l := e.layers[h.DiffID]
		e.mu.Unlock()
		switch {
		case sent && (l == nil || l.encoded != h.TOC):
			if err := writeDurably(e.tocPath(h.DiffID), m.Encoded[h.DiffID]); err != nil {
				return nil, nil, err
			}
			l = &layer{diffID: h.DiffID, encoded: h.TOC, objects: t.Objects}
			e.mu.Lock()
			e.layers[h.DiffID] = l
			e.mu.Unlock()
		case l == nil:
			return nil, nil, fmt.Errorf("layer %s has gone meanwhile: %w", h.DiffID, fs.ErrNotExist)
		case !sent:
			var err error
			if t, err = e.readTOC(h.DiffID); err != nil {
				return nil, nil, err
			}
		}
		layers, tocs = append(layers, l), append(tocs, t)
	}
	return layers, tocs, nil
}

func (e *Engine) readTOC(d toc.Digest) (*toc.TOC, error) {
	b, err := os.ReadFile(e.tocPath(d))
	if err != nil {
		return nil, err
	}
	t, err := toc.Decode(b)
	if err == nil && t.DiffID != d {
		err = fmt.Errorf("is of layer %s: %w", t.DiffID, toc.ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("TOC of layer %s: %w", d, err)
	}
	return t, nil
}

func (e *Engine) indexPath(manifest toc.Digest) string {
	return lazyfs.IndexPath(e.lazyState(), manifest.Hex())
}

// addImage makes an image and its chains known. Engine.mu is held.
func (e *Engine) addImage(d toc.Digest, rec imageRecord, layers []*layer) *image {
	img := &image{digest: d, rec: rec, layers: layers, changed: make(chan struct{}), demands: newDemands()}
	ids := make([]digest.Digest, len(layers))
	for i, l := range layers {
		ids[i] = digest.Digest(l.diffID.String())
	}
	for i, id := range identity.ChainIDs(ids) {
		c := e.chains[id]
		if c == nil {
			c = &chain{id: id}
			e.chains[id] = c
		}
		c.layers = layers[:i+1]
		img.chains = append(img.chains, c)
	}
	e.images[d] = img
	return img
}

// addBlobs makes the layers of an image virtual blobs. Engine.mu is held.
func (e *Engine) addBlobs(img *image) {
	for _, l := range img.rec.Layers {
		if e.blobs[l.Descriptor.Digest] == nil {
			e.blobs[l.Descriptor.Digest] = &blob{BlobInfo{l.Descriptor.Digest, l.Descriptor.Size, img.rec.Pulled}, img}
		}
	}
}

// recount notes which objects have become local since p.need was made; it is for
// objects that arrived between two looks. Engine.mu is held.
func (e *Engine) recount(img *image) {
	p := img.pending
	for i, needed := range p.need {
		if needed && e.objects.Has(p.list[i].Digest) {
			p.got(uint32(i))
		}
	}
}

func (p *pending) got(i uint32) {
	if p.need[i] {
		p.need[i] = false
		p.objects--
		p.bytes -= p.list[i].Size
	}
}

// arrived tells all images of objects that have become local.
func (e *Engine) arrived(ds ...toc.Digest) {
	if len(ds) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range ds {
		delete(e.claims, d)
	}
	for _, img := range e.images {
		p := img.pending
		if p == nil || p.objects == 0 {
			continue
		}
		for _, d := range ds {
			if i, ok := p.index[d]; ok {
				p.got(i)
			}
		}
		if p.objects == 0 {
			img.broadcast()
		}
	}
}

// load reads the state and returns the images that are incomplete.
func (e *Engine) load(ctx context.Context) ([]*image, error) {
	rebooted, err := e.state.rebooted()
	if err != nil {
		return nil, err
	}
	var lost []toc.Digest
	records := map[toc.Digest]imageRecord{}
	err = e.state.load(
		func(d toc.Digest, r imageRecord) { records[d] = r },
		func(k refKey, r refRecord) { e.refs[k] = &ref{rec: r} })
	if err != nil {
		return nil, err
	}
	var incomplete []*image
	for d, r := range records {
		layers, err := e.loadLayers(r)
		if err != nil {
			// Without its TOCs an image is nothing; the next pull brings them anew.
			log.G(ctx).WithError(err).WithField("image", d).Warn("image is forgotten")
			lost = append(lost, d)
			continue
		}
		img := e.addImage(d, r, layers)
		img.source = source{ref: r.Name + "@" + d.String(), host: hostOf(r.Name), platform: r.Platform}
		e.addBlobs(img)
		if !r.Complete {
			incomplete = append(incomplete, img)
		}
	}
	for _, r := range e.refs {
		r.img = e.images[r.rec.Manifest]
	}
	if rebooted {
		if err := e.recheck(ctx, incomplete); err != nil {
			return nil, err
		}
	}
	return incomplete, e.state.drop(lost, nil)
}

func (e *Engine) loadLayers(r imageRecord) ([]*layer, error) {
	var out []*layer
	for _, lr := range r.Layers {
		l := e.layers[lr.DiffID]
		if l == nil {
			b, err := os.ReadFile(e.tocPath(lr.DiffID))
			if err != nil {
				return nil, err
			}
			t, err := toc.Decode(b)
			if err != nil {
				return nil, fmt.Errorf("TOC of layer %s: %w", lr.DiffID, err)
			}
			l = &layer{diffID: lr.DiffID, encoded: sha256.Sum256(b), objects: t.Objects}
			e.layers[lr.DiffID] = l
		}
		out = append(out, l)
	}
	return out, nil
}

// recheck is for the start after a power cut: what the incomplete images have was
// never synced, so it is hashed again, and trees that may be torn are dropped.
func (e *Engine) recheck(ctx context.Context, incomplete []*image) error {
	synced := map[toc.Digest]bool{}
	for _, img := range e.images {
		if img.rec.Complete {
			for _, l := range img.layers {
				for _, o := range l.objects {
					synced[o.Digest] = true
				}
			}
		}
	}
	var doubtful []toc.Digest
	for _, img := range incomplete {
		for _, c := range img.chains {
			if err := os.Remove(e.treePath(c.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		for _, l := range img.layers {
			for _, o := range l.objects {
				if !synced[o.Digest] {
					synced[o.Digest] = true
					doubtful = append(doubtful, o.Digest)
				}
			}
		}
	}
	bad, err := e.objects.Verify(ctx, doubtful)
	if len(bad) > 0 {
		log.G(ctx).WithField("objects", len(bad)).Warn("objects lost in a crash will be fetched again")
	}
	return err
}

// writeDurably replaces a file so that after a crash it is there whole, or not.
func writeDurably(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
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
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
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

// meter counts bytes of the wire and their rate.
type meter struct {
	total, turns atomic.Int64
	last         atomic.Int64 // when bytes came last, Unix nanoseconds
	since, at    atomic.Int64 // start of the window and the total then
	rate         atomic.Int64 // bytes a second in the window before
}

// window is over how long the rate is measured.
const window = time.Second

func (m *meter) add(n int64) {
	now := time.Now().UnixNano()
	total := m.total.Add(n)
	m.last.Store(now)
	if since := m.since.Load(); now-since >= int64(window) && m.since.CompareAndSwap(since, now) {
		if before := m.at.Swap(total); since != 0 {
			m.rate.Store((total - before) * int64(time.Second) / (now - since))
		}
	}
}

// perSecond is the rate now: 0 when nothing came for a while.
func (m *meter) perSecond() float64 {
	if time.Now().UnixNano()-m.last.Load() > 2*int64(window) {
		return 0
	}
	return float64(m.rate.Load())
}

// fetchFunc fetches a blob from the registry as a client would.
type fetchFunc = func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
