package engine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/plugins/internal/delta"
	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
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
	// chain is the one whose disk usage the TOC is part of. Engine.mu guards it.
	chain *chain
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

	// ctx ends, by stop, when the image is removed, and with it all that works for
	// it, for which work waits.
	ctx  context.Context //nolint:containedctx // of all background work for the image
	stop context.CancelFunc
	work sync.WaitGroup
	gone bool // nothing may begin any more

	pending *pending      // nil: complete
	watched bool          // a supervisor runs
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
	ticket   string // in place of creds after a restart
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
	src.ref, src.ticket = name+"@"+m.Manifest.Digest.String(), m.Header.Ticket
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
	if err := e.renew(d, m, layers); err != nil {
		return nil, err
	}
	rec := imageRecord{
		Name: name, Platform: src.platform, Manifest: m.Manifest.Descriptor,
		Objects: objects, Bytes: bytes, Pulled: time.Now(), Ticket: m.Header.Ticket,
	}
	if n := len(m.Header.Taken); n > 0 && int64(slices.Max(m.Header.Taken)) >= int64(len(p.list)) {
		return nil, fmt.Errorf("object %d of %d is taken: %w", slices.Max(m.Header.Taken), len(p.list), toc.ErrInvalid)
	}
	s.localObjects, s.localBytes = objects-p.objects, bytes-p.bytes
	for i, l := range m.Header.Layers {
		rec.Layers = append(rec.Layers, layerRecord{l.DiffID, l.TOC, m.ImageManifest.Layers[i]})
	}
	if p.objects > 0 {
		if err := lazyfs.WriteIndex(e.indexPath(d), p.list); err != nil {
			return nil, err
		}
		failpoint.Here("index-written")
	}
	e.mu.Lock()
	known := e.images[d]
	if known != nil {
		rec.Complete = known.rec.Complete && p.objects == 0
		rec.Pulled = known.rec.Pulled // its age decides what counts for it
	}
	e.mu.Unlock()
	if err := e.state.putImage(d, rec); err != nil {
		return nil, err
	}
	failpoint.Here("image-recorded")
	e.mu.Lock()
	img := e.images[d]
	if img == nil {
		img = e.addImage(d, rec, layers)
		e.own(img)
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
	for _, i := range m.Header.Taken { // checked above
		if o := p.list[i].Digest; p.need[i] && e.claims[o] != s {
			e.claims[o] = s
			s.claimed = append(s.claimed, o)
		}
	}
	top := img.top()
	e.mu.Unlock()
	if top != nil {
		e.run(img, func(ctx context.Context) {
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
			if err := e.contradicts(h); err != nil {
				return nil, nil, err
			}
			if err := writeDurably(e.tocPath(h.DiffID), m.Encoded[h.DiffID]); err != nil {
				return nil, nil, err
			}
			l = &layer{diffID: h.DiffID, encoded: h.TOC, objects: t.Objects}
			e.mu.Lock()
			e.layers[h.DiffID] = l
			e.mu.Unlock()
		case l == nil:
			return nil, nil, fmt.Errorf("layer %s has gone meanwhile: %w", h.DiffID, delta.ErrRetry)
		case !sent:
			var err error
			if t, err = e.readTOC(l); err != nil {
				// Ask again, as one who has it not.
				return nil, nil, fmt.Errorf("%w: %w", delta.ErrOtherTOC, errors.Join(err, e.forgetLayer(l)))
			}
		}
		layers, tocs = append(layers, l), append(tocs, t)
	}
	return layers, tocs, nil
}

// contradicts is an error if an image that is known has another TOC of a layer, and its
// manifest names that: the other one is not trusted more than the manifest.
func (e *Engine) contradicts(h wire.Layer) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, img := range e.images {
		for _, l := range img.rec.Layers {
			if l.DiffID == h.DiffID && l.TOC != h.TOC && l.named() {
				return fmt.Errorf("proxyd's TOC of layer %s is %s, but manifest %s, which was pulled before, names %s: one of them is not that of the layer: %w", h.DiffID, h.TOC, img.digest, l.TOC, toc.ErrInvalid)
			}
		}
	}
	return nil
}

// renew makes image d and its chains, as far as they are known, ones of these layers:
// where a TOC has been replaced there may be trees of the old one.
func (e *Engine) renew(d toc.Digest, m *delta.Metadata, layers []*layer) error {
	e.mu.Lock()
	var known, stale []*chain
	for i, id := range identity.ChainIDs(slices.Clone(m.ImageConfig.RootFS.DiffIDs)) {
		c := e.chains[id]
		if c == nil {
			continue
		}
		known = append(known, c)
		if !sameTOCs(c.layers, layers[:i+1]) {
			stale = append(stale, c)
		}
	}
	e.mu.Unlock()
	for _, c := range stale {
		// It is not made again of the old TOC, which has been overwritten.
		if err := e.dropTree(c); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range known {
		c.layers = layers[:len(c.layers)]
	}
	if img := e.images[d]; img != nil && !slices.Equal(img.layers, layers) {
		img.layers = layers
		e.account()
	}
	return nil
}

// sameTOCs tells whether two stacks of layers have the same TOCs.
func sameTOCs(a, b []*layer) bool {
	return slices.EqualFunc(a, b, func(a, b *layer) bool { return a.encoded == b.encoded })
}

// encodedTOC reads the encoded TOC of l, which is refused if it is not what was received.
func (e *Engine) encodedTOC(l *layer) ([]byte, error) {
	b, err := os.ReadFile(e.tocPath(l.diffID))
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(b) != l.encoded {
		return nil, fmt.Errorf("TOC of layer %s has been damaged: %w", l.diffID, toc.ErrInvalid)
	}
	return b, nil
}

// readTOC reads the TOC of l.
func (e *Engine) readTOC(l *layer) (*toc.TOC, error) {
	b, err := e.encodedTOC(l)
	if err != nil {
		return nil, err
	}
	t, err := toc.Decode(b)
	if err != nil {
		return nil, fmt.Errorf("TOC of layer %s: %w", l.diffID, err)
	}
	return t, nil
}

func (e *Engine) indexPath(manifest toc.Digest) string {
	return lazyfs.IndexPath(e.lazyState(), manifest.Hex())
}

// addImage makes an image and its chains known. Engine.mu is held.
func (e *Engine) addImage(d toc.Digest, rec imageRecord, layers []*layer) *image {
	img := &image{digest: d, rec: rec, layers: layers, changed: make(chan struct{}), demands: newDemands()}
	img.ctx, img.stop = context.WithCancel(e.ctx)
	ids := make([]digest.Digest, len(layers))
	for i, l := range layers {
		ids[i] = digest.Digest(l.diffID.String())
	}
	for i, id := range identity.ChainIDs(ids) {
		c := e.chains[id]
		if c == nil {
			c = &chain{id: id, layers: layers[:i+1]}
			e.chains[id] = c
		}
		if i > 0 {
			c.parent = img.chains[i-1]
		}
		img.chains = append(img.chains, c)
	}
	e.images[d] = img
	return img
}

// run is runLocked.
func (e *Engine) run(img *image, fn func(context.Context)) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.runLocked(img, fn)
}

// runLocked runs fn in the background until it ends, the image is removed or the
// engine closes. It is false if the image has been removed. Engine.mu is held.
func (e *Engine) runLocked(img *image, fn func(context.Context)) bool {
	if img.gone {
		return false
	}
	img.work.Add(1)
	e.wg.Go(func() {
		defer img.work.Done()
		fn(img.ctx)
	})
	return true
}

// sourceOf, layersOf and recordOf return what changes when img is pulled again.
func (e *Engine) sourceOf(img *image) source {
	e.mu.Lock()
	defer e.mu.Unlock()
	return img.source
}

func (e *Engine) layersOf(img *image) []*layer {
	e.mu.Lock()
	defer e.mu.Unlock()
	return img.layers
}

func (e *Engine) recordOf(img *image) imageRecord {
	e.mu.Lock()
	defer e.mu.Unlock()
	return img.rec
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

// got notes that an object is local, and tells whether that is news.
func (p *pending) got(i uint32) bool {
	if !p.need[i] {
		return false
	}
	p.need[i] = false
	p.objects--
	p.bytes -= p.list[i].Size
	return true
}

// arrived tells all images of objects that have become local.
func (e *Engine) arrived(from origin, ds ...toc.Digest) {
	if len(ds) == 0 {
		return
	}
	counted := make([]bool, len(ds)) // what arrives again does not count again
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range ds {
		delete(e.claims, d)
		e.count(d)
	}
	for _, img := range e.images {
		p := img.pending
		if p == nil || p.objects == 0 {
			continue
		}
		for j, d := range ds {
			if i, ok := p.index[d]; ok && p.got(i) && !counted[j] {
				counted[j] = true
				e.tally(from, p.list[i])
			}
		}
		if p.objects == 0 {
			img.broadcast()
		}
	}
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
