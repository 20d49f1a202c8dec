package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// files is a layer: names and contents.
type files map[string]string

// testImage is what fakeProxy serves under a reference.
type testImage struct {
	manifest, config []byte
	layers           []*toc.TOC
	contents         map[toc.Digest]string
	header           wire.Header
}

func newTestImage(t testing.TB, layers ...files) *testImage {
	t.Helper()
	return newLayers(t, nil, layers...)
}

// newLayers is newTestImage with layers that edit may change before anything else is made
// of them.
func newLayers(t testing.TB, edit func(*toc.TOC, *ocispec.Descriptor), layers ...files) *testImage {
	t.Helper()
	img := &testImage{contents: map[toc.Digest]string{}}
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	man := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		b := toc.NewBuilder()
		var all strings.Builder
		for _, name := range slices.Sorted(maps.Keys(l)) {
			content := l[name]
			all.WriteString(name + "\x00" + content + "\x00")
			e := toc.Entry{Name: name, Type: toc.TypeReg, Mode: 0o644, Size: int64(len(content))}
			var pieces []toc.Digest
			if len(content) > 0 {
				e.Object = sha256.Sum256([]byte(content))
				img.contents[e.Object] = content
			}
			if len(content) > toc.PieceSize {
				for p := range slices.Chunk([]byte(content), toc.PieceSize) {
					pieces = append(pieces, sha256.Sum256(p))
				}
			}
			if _, _, err := b.Add(e, pieces); err != nil {
				t.Fatal(err)
			}
		}
		diffID := toc.Digest(sha256.Sum256([]byte(all.String())))
		table := b.TOC(diffID)
		img.layers = append(img.layers, table)
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("blob " + diffID.Hex()), Size: int64(all.Len())}
		if edit != nil {
			edit(table, &desc)
		}
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.Digest(diffID.String()))
		man.Layers = append(man.Layers, desc)
		blobDigest, err := toc.ParseDigest(desc.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		img.header.Layers = append(img.header.Layers, wire.Layer{
			DiffID: diffID, Digest: blobDigest, Size: desc.Size, MediaType: desc.MediaType, TOC: sha256.Sum256(table.Encode()),
		})
	}
	img.config = mustJSON(t, cfg)
	man.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(img.config), Size: int64(len(img.config))}
	img.manifest = mustJSON(t, man)
	img.header.Blobs = []wire.Blob{
		{MediaType: man.MediaType, Digest: sha256.Sum256(img.manifest), Size: int64(len(img.manifest))},
		{MediaType: man.Config.MediaType, Digest: sha256.Sum256(img.config), Size: int64(len(img.config))},
	}
	return img
}

func (i *testImage) digest() toc.Digest { return sha256.Sum256(i.manifest) }

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fakeProxy speaks the wire with images made in memory, and can be told to
// misbehave where no real proxyd would.
type fakeProxy struct {
	*httptest.Server

	mu      sync.Mutex // guards the following fields
	images  map[string]*testImage
	sent    map[toc.Digest]int // how often each object was sent
	bytes   int64              // of all objects that were sent
	asked   []wire.DeltaRequest
	planned []wire.PlanRequest
	refuse  *wire.Error
	// taken are objects that bundles of an image bring whatever is said to be coming.
	taken map[string][]uint32 // by reference
	// named are the images of requests with a name; came is told of new ones.
	named map[string]*testImage
	came  *sync.Cond

	// tamper may change the contents of object i of a bundle, or end the bundle
	// with an error; nil contents leave it out. It may block.
	tamper func(r *http.Request, o toc.Object, contents []byte) ([]byte, error)
	// pieceSent, if set before the first request, is called after each piece, and may
	// cut the bundle off by false. It may block.
	pieceSent func(r *http.Request) bool
}

func newFakeProxy(t testing.TB) *fakeProxy {
	p := &fakeProxy{images: map[string]*testImage{}, sent: map[toc.Digest]int{}, named: map[string]*testImage{}}
	p.came = sync.NewCond(&p.mu)
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.CloseClientConnections)
	t.Cleanup(p.Close)
	return p
}

// add serves img by its tag and its digest.
func (p *fakeProxy) add(ref string, img *testImage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name, _, _ := splitRef(ref)
	p.images[ref] = img
	p.images[name+"@"+img.digest().String()] = img
}

func (p *fakeProxy) set(tamper func(*http.Request, toc.Object, []byte) ([]byte, error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tamper = tamper
}

func (p *fakeProxy) counts() (objects, most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.sent {
		objects += n
		most = max(most, n)
	}
	return objects, most
}

func (p *fakeProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case wire.RoutePing:
		_ = json.NewEncoder(w).Encode(wire.Ping{Version: "test", Protocol: wire.Version})
	case wire.RouteDelta:
		var req wire.DeltaRequest
		if img := p.lookup(w, r, &req, func() string { return req.Ref }); img != nil {
			p.mu.Lock()
			p.asked = append(p.asked, req)
			p.named[req.Request] = img
			p.came.Broadcast()
			p.mu.Unlock()
			p.delta(w, r, req, img)
		}
	case wire.RoutePlan:
		var req wire.PlanRequest
		if img := p.lookup(w, r, &req, func() string { return req.Ref }); img != nil {
			p.mu.Lock()
			p.planned = append(p.planned, req)
			p.mu.Unlock()
			w.Header().Set("Content-Type", wire.BundleType)
			bundle := wire.NewWriter(w)
			_ = bundle.Progress(wire.Progress{Stage: "plan", Done: 1, Total: 2})
			_ = bundle.Plan(&wire.Plan{Manifest: img.digest(), Wire: 7})
		}
	case wire.RouteObjects:
		var req wire.ObjectsRequest
		if img := p.lookup(w, r, &req, func() string { return req.Ref }); img != nil {
			w.Header().Set("Content-Type", wire.BundleType)
			bundle := wire.NewWriter(w)
			list := toc.ObjectList(img.layers...)
			for _, o := range req.Objects {
				if p.object(bundle, r, img, o.Object, list[o.Object], nil) != nil {
					return
				}
			}
			_ = bundle.End()
		}
	default:
		http.NotFound(w, r)
	}
}

func (p *fakeProxy) lookup(w http.ResponseWriter, r *http.Request, req any, ref func() string) *testImage {
	fail := func(status int, e *wire.Error) *testImage {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(e)
		return nil
	}
	if err := wire.DecodeRequest(r.Body, r.Header.Get("Content-Encoding"), req); err != nil {
		return fail(http.StatusBadRequest, &wire.Error{Code: wire.CodeInvalid, Message: err.Error()})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse != nil {
		return fail(http.StatusForbidden, p.refuse)
	}
	img := p.images[ref()]
	if img == nil {
		return fail(http.StatusNotFound, &wire.Error{Code: wire.CodeNotFound, Message: "no such image"})
	}
	return img
}

func (p *fakeProxy) delta(w http.ResponseWriter, r *http.Request, req wire.DeltaRequest, img *testImage) {
	w.Header().Set("Content-Type", wire.BundleType)
	bundle := wire.NewWriter(w)
	h := img.header
	h.Stream = "s"
	h.Layers = slices.Clone(h.Layers)
	had := map[toc.Digest][]byte{}
	for _, part := range req.Partial {
		had[part.Object] = part.Pieces
	}
	has := p.before(req, &h)
	p.mu.Lock()
	h.Taken = p.taken[req.Ref]
	p.mu.Unlock()
	given := map[toc.Digest]bool{}
	for _, name := range h.After {
		for _, l := range p.image(name).layers {
			given[l.DiffID] = true
		}
	}
	for i := range h.Layers {
		h.Layers[i].Sent = !given[h.Layers[i].DiffID]
		for _, have := range req.Have {
			if have.DiffID != h.Layers[i].DiffID {
				continue
			}
			h.Layers[i].Sent = false
		}
	}
	p.mu.Lock()
	for _, have := range req.Have {
		for _, other := range p.images {
			for _, l := range other.layers {
				for i, o := range l.Objects {
					if l.DiffID == have.DiffID && (have.Missing == nil || have.Missing[i/8]&(1<<(i%8)) == 0) {
						has[o.Digest] = true
					}
				}
			}
		}
	}
	p.mu.Unlock()
	if bundle.Header(&h) != nil || bundle.Blob(img.manifest) != nil || bundle.Blob(img.config) != nil {
		return
	}
	for i, l := range h.Layers {
		if l.Sent && bundle.TOC(img.layers[i].Encode()) != nil {
			return
		}
	}
	if bundle.Flush() != nil {
		return
	}
	w.(http.Flusher).Flush()
	for _, i := range h.Taken {
		if list := toc.ObjectList(img.layers...); int(i) < len(list) {
			has[list[i].Digest] = false
		}
	}
	tree, err := toc.Merge(img.layers...)
	if err != nil {
		return
	}
	visible := map[toc.Digest]bool{}
	_ = tree.Walk(func(_ string, n *toc.Node) error { visible[n.Object] = true; return nil })
	var local []wire.Range
	for i, o := range toc.ObjectList(img.layers...) {
		if req.Local && visible[o.Digest] && has[o.Digest] {
			local = append(local, wire.Range{Object: uint32(i)})
		}
	}
	if len(local) > 0 && bundle.Local(local) != nil {
		return
	}
	for i, o := range toc.ObjectList(img.layers...) {
		if visible[o.Digest] && !has[o.Digest] && p.object(bundle, r, img, uint32(i), o, had[o.Digest]) != nil {
			return
		}
	}
	_ = bundle.End()
}

// image is that of a request.
func (p *fakeProxy) image(request string) *testImage {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.named[request]
}

// before waits for the requests that another one was made after, and returns what they
// bring.
func (p *fakeProxy) before(req wire.DeltaRequest, h *wire.Header) map[toc.Digest]bool {
	has := map[toc.Digest]bool{}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range req.After {
		for p.named[name] == nil {
			p.came.Wait()
		}
		for _, l := range p.named[name].layers {
			for _, o := range l.Objects {
				has[o.Digest] = true
			}
		}
		h.After = append(h.After, name)
	}
	return has
}

var errCut = errors.New("cut")

// object sends an object but for the pieces in had.
func (p *fakeProxy) object(bundle *wire.Writer, r *http.Request, img *testImage, i uint32, o toc.Object, had []byte) error {
	p.mu.Lock()
	p.sent[o.Digest]++
	tamper := p.tamper
	p.mu.Unlock()
	contents := []byte(img.contents[o.Digest])
	if tamper != nil {
		var err error
		if contents, err = tamper(r, o, bytes.Clone(contents)); err != nil {
			return errors.Join(err, bundle.Flush())
		}
		if contents == nil {
			return nil
		}
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		return err
	}
	defer enc.Close()
	n := uint32(0)
	for piece := range slices.Chunk(contents, toc.PieceSize) {
		if n/8 < uint32(len(had)) && had[n/8]&(1<<(n%8)) != 0 {
			n++
			continue
		}
		p.mu.Lock()
		p.bytes += int64(len(piece))
		p.mu.Unlock()
		index := []wire.Piece{{Kind: wire.KindPlain, Object: i, Piece: n, Length: len(piece)}}
		if err := bundle.Data(index, enc.EncodeAll(piece, nil), true); err != nil {
			return err
		}
		if err := bundle.Flush(); err != nil {
			return err
		}
		n++
		if p.pieceSent != nil && !p.pieceSent(r) {
			return errCut
		}
	}
	return bundle.Flush()
}
