package delta

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

var request = wire.DeltaRequest{Ref: "registry.example/app:1", Platform: "linux/amd64"}

// read pulls a through a real connection.
func read(t *testing.T, a *answer, req wire.DeltaRequest, held Held) (*Metadata, error) {
	t.Helper()
	c := serve(t, func(_ http.ResponseWriter, _ *http.Request, w *wire.Writer) { a.write(t, w) })
	b, err := c.Delta(t.Context(), req)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return ReadHeader(b, req, held, nil)
}

func TestReadHeader(t *testing.T) {
	with := newAnswer(t, nil)
	without := with.clone()
	without.noIndex()
	tests := []struct {
		name string
		a    *answer
		ref  string
	}{
		{"tag to index", with, request.Ref},
		{"tag to manifest", without, request.Ref},
		{"digest of index", with, "registry.example/app@" + with.header.Blobs[0].Digest.String()},
		{"digest of manifest", without, "registry.example/app@" + with.header.Blobs[1].Digest.String()},
		{"tag and digest", with, "registry.example:5000/app:1@" + with.header.Blobs[0].Digest.String()},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			req := request
			req.Ref = tc.ref
			m, err := read(t, tc.a, req, Held{})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := m.Target().Digest.String(), tc.a.header.Blobs[0].Digest.String(); got != want {
				t.Errorf("got target %s, want %s", got, want)
			}
			if !bytes.Equal(m.Config.Bytes, tc.a.blobs[len(tc.a.blobs)-1]) {
				t.Errorf("got config %q", m.Config.Bytes)
			}
			if len(m.TOCs) != 2 || len(m.Encoded) != 2 {
				t.Fatalf("got %d TOCs, want 2", len(m.TOCs))
			}
			for i, l := range tc.a.header.Layers {
				if m.TOCs[l.DiffID].DiffID != l.DiffID || !bytes.Equal(m.Encoded[l.DiffID], tc.a.tocs[i]) {
					t.Errorf("TOC %d is another", i)
				}
			}
			if len(m.ImageManifest.Layers) != 2 || len(m.ImageConfig.RootFS.DiffIDs) != 2 {
				t.Errorf("got manifest %+v, config %+v", m.ImageManifest, m.ImageConfig)
			}
			if m.Index != nil && m.Manifest.Platform.Architecture != "amd64" {
				t.Errorf("got platform %v", m.Manifest.Platform)
			}
		})
	}
}

func TestReadHeaderLayersHeld(t *testing.T) {
	a := newAnswer(t, nil)
	low := a.header.Layers[0]
	a.header.Layers[0].Sent = false
	a.tocs = a.tocs[1:]
	req := request
	req.Have = []wire.Have{{DiffID: low.DiffID}}

	m, err := read(t, a, req, Held{TOC: func(toc.Digest) (toc.Digest, bool) { return low.TOC, true }})
	if err != nil || len(m.TOCs) != 1 {
		t.Fatalf("got %v, %v, want one TOC", m, err)
	}
	if _, err := read(t, a, req, Held{TOC: func(toc.Digest) (toc.Digest, bool) { return sum(nil), true }}); !errors.Is(err, ErrOtherTOC) {
		t.Errorf("another TOC held: got %v, want ErrOtherTOC", err)
	}
	if _, err := read(t, a, request, Held{}); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("TOC neither sent nor held: got %v, want ErrInvalid", err)
	}
}

func TestReadHeaderPatchedTOC(t *testing.T) {
	old := (&toc.TOC{DiffID: sum([]byte("old")), Entries: []toc.Entry{{Name: "a", Mode: 0o644}}}).Encode()
	base := &wire.Base{DiffID: sum([]byte("old")), TOC: sum(old)}
	whole := newAnswer(t, nil)
	a := whole.clone()
	p, err := wire.PatchTOC(t.Context(), old, a.tocs[0])
	if err != nil {
		t.Fatal(err)
	}
	a.tocs[0], a.header.Layers[0].Base = p, base
	req := request
	req.Have = []wire.Have{{DiffID: base.DiffID}}
	encoded := func(b []byte, err error) Held {
		return Held{Encoded: func(d toc.Digest) ([]byte, error) {
			if d != base.DiffID {
				t.Errorf("asked for the TOC of %s", d)
			}
			return b, err
		}}
	}
	m, err := read(t, a, req, encoded(old, nil))
	if err != nil || !bytes.Equal(m.Encoded[a.header.Layers[0].DiffID], whole.tocs[0]) {
		t.Fatalf("got %v, %v, want the TOC that was patched", m, err)
	}
	other := a.clone()
	other.tocs[0], err = wire.PatchTOC(t.Context(), old, whole.tocs[1])
	if err != nil {
		t.Fatal(err)
	}
	cut := a.clone()
	cut.tocs[0] = p[:len(p)-1]
	tests := []struct {
		name string
		a    *answer
		req  wire.DeltaRequest
		held Held
		want error
	}{
		{"another base", a, req, encoded([]byte("another"), nil), ErrOtherTOC},
		{"lost base", a, req, encoded(nil, errdefs.ErrNotFound), ErrOtherTOC},
		{"patch of another TOC", other, req, encoded(old, nil), ErrOtherTOC},
		{"patch cut off", cut, req, encoded(old, nil), ErrOtherTOC},
		{"base not named", a, request, encoded(old, nil), toc.ErrInvalid},
		{"nothing held", a, req, Held{}, toc.ErrInvalid},
	}
	for _, tc := range tests {
		if _, err := read(t, tc.a, tc.req, tc.held); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
}

func TestReadHeaderSameLayerTwice(t *testing.T) {
	for _, sentAgain := range []bool{true, false} {
		a := newAnswer(t, func(name string, a *answer) {
			if name != "config" {
				return
			}
			top := a.header.Layers[1]
			top.Sent = sentAgain
			a.header.Layers = append(a.header.Layers, top)
			a.config.RootFS.DiffIDs = append(a.config.RootFS.DiffIDs, asOCI(top.DiffID))
			a.manifest.Layers = append(a.manifest.Layers, a.manifest.Layers[1])
			if sentAgain {
				a.tocs = append(a.tocs, a.tocs[1])
			}
		})
		if m, err := read(t, a, request, Held{}); err != nil || len(m.TOCs) != 2 || len(m.ImageManifest.Layers) != 3 {
			t.Errorf("sent again %v: got %v, %v, want 2 TOCs of 3 layers", sentAgain, m, err)
		}
	}
}

func TestReadHeaderResumed(t *testing.T) {
	a := newAnswer(t, nil)
	held := map[toc.Digest][]byte{}
	for i, b := range a.header.Blobs {
		held[b.Digest] = a.blobs[i]
	}
	blob := func(d toc.Digest) ([]byte, error) {
		if b, ok := held[d]; ok {
			return b, nil
		}
		return nil, errdefs.ErrNotFound
	}
	a.blobs = nil
	req := request
	req.HaveManifest = a.header.Blobs[1].Digest
	if m, err := read(t, a, req, Held{Blob: blob}); err != nil || m.Manifest.Size != int64(len(held[req.HaveManifest])) {
		t.Fatalf("got %v, %v", m, err)
	}
	if _, err := read(t, a, req, Held{}); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("nothing held: got %v, want ErrInvalid", err)
	}
	held[a.header.Blobs[2].Digest] = []byte("{}")
	if _, err := read(t, a, req, Held{Blob: blob}); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("held blob is damaged: got %v, want ErrInvalid", err)
	}
	req.HaveManifest = a.header.Blobs[0].Digest
	if _, err := read(t, a, req, Held{Blob: blob}); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("another manifest: got %v, want ErrInvalid", err)
	}
}

// named makes the manifest name TOCs, by the number of the layer.
func named(t *testing.T, key string, tocs map[int]string) *answer {
	return newAnswer(t, func(name string, a *answer) {
		for i, d := range tocs {
			if name == "manifest" {
				a.manifest.Layers[i].Annotations = map[string]string{key: d}
			}
		}
	})
}

func TestReadHeaderNamedTOCs(t *testing.T) {
	plain := newAnswer(t, nil)
	low, top, other := plain.header.Layers[0].TOC.String(), plain.header.Layers[1].TOC.String(), sum(nil).String()
	for _, tc := range []struct {
		name    string
		a       *answer
		unnamed int
		refused bool
	}{
		{"none", plain, 2, false},
		{"one", named(t, toc.Annotation, map[int]string{1: top}), 1, false},
		{"all", named(t, toc.Annotation, map[int]string{0: low, 1: top}), 0, false},
		{"another", named(t, toc.Annotation, map[int]string{0: low, 1: other}), 0, true},
		{"exchanged", named(t, toc.Annotation, map[int]string{0: top, 1: low}), 0, true},
		{"no digest", named(t, toc.Annotation, map[int]string{0: "sha256:0"}), 0, true},
		{"another of another version", named(t, toc.AnnotationPrefix+"v0", map[int]string{0: other}), 2, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := read(t, tc.a, request, Held{})
			if errors.Is(err, toc.ErrInvalid) != tc.refused || (err == nil) == tc.refused {
				t.Fatalf("got %v, want it refused: %v", err, tc.refused)
			}
			if err == nil && m.Unnamed != tc.unnamed {
				t.Errorf("%d layers are unnamed, want %d", m.Unnamed, tc.unnamed)
			}
		})
	}
	// Nor does it help a proxyd not to send the TOC.
	a := named(t, toc.Annotation, map[int]string{0: other})
	held := a.header.Layers[0]
	a.header.Layers[0].Sent, a.tocs = false, a.tocs[1:]
	req := request
	req.Have = []wire.Have{{DiffID: held.DiffID}}
	_, err := read(t, a, req, Held{TOC: func(toc.Digest) (toc.Digest, bool) { return held.TOC, true }})
	if !errors.Is(err, toc.ErrInvalid) || Retryable(err) || !strings.Contains(err.Error(), other) {
		t.Errorf("TOC that is held: got %v, want ErrInvalid", err)
	}
}

func TestReadHeaderRefusesHostileAnswers(t *testing.T) {
	evil := toc.Digest{1, 2, 3}
	reencode := func(t *testing.T, a *answer, change func(*toc.TOC)) {
		tc, err := toc.Decode(a.tocs[0])
		if err != nil {
			t.Fatal(err)
		}
		change(tc)
		a.tocs[0] = tc.Encode()
		a.header.Layers[0].TOC = sum(a.tocs[0])
	}
	document := func(name string, change func(*answer)) func(*testing.T) *answer {
		return func(t *testing.T) *answer {
			return newAnswer(t, func(n string, a *answer) {
				if n == name {
					change(a)
				}
			})
		}
	}
	bent := func(bend func(*testing.T, *answer)) func(*testing.T) *answer {
		return func(t *testing.T) *answer {
			a := newAnswer(t, nil)
			bend(t, a)
			return a
		}
	}
	tests := []struct {
		name string
		ref  string
		make func(*testing.T) *answer
	}{
		{name: "digest reference to other bytes", ref: "registry.example/app@" + evil.String(), make: bent(func(*testing.T, *answer) {})},
		{name: "tag and wrong digest", ref: "registry.example/app:1@" + evil.String(), make: bent(func(*testing.T, *answer) {})},
		{name: "digest reference of unknown algorithm", ref: "registry.example/app@md5:00", make: bent(func(*testing.T, *answer) {})},
		{name: "manifest bytes changed", make: bent(func(_ *testing.T, a *answer) {
			a.blobs[1] = bytes.Replace(a.blobs[1], []byte("gzip"), []byte("zstd"), 1)
		})},
		{name: "config bytes changed", make: bent(func(_ *testing.T, a *answer) {
			a.blobs[2] = bytes.Replace(a.blobs[2], []byte("amd64"), []byte("arm64"), 1)
		})},
		{name: "no blobs", make: bent(func(_ *testing.T, a *answer) { a.blobs, a.header.Blobs = nil, nil })},
		{name: "config only", make: bent(func(_ *testing.T, a *answer) { a.blobs, a.header.Blobs = a.blobs[2:], a.header.Blobs[2:] })},
		{name: "index passed off as manifest", make: bent(func(_ *testing.T, a *answer) {
			a.header.Blobs[0].MediaType = ocispec.MediaTypeImageManifest
			a.header.Blobs[1] = a.header.Blobs[2]
			a.blobs[1] = a.blobs[2]
			a.blobs, a.header.Blobs = a.blobs[:2], a.header.Blobs[:2]
		})},
		{name: "manifest not in index", make: document("index", func(a *answer) { a.index.Manifests = a.index.Manifests[:1] })},
		{name: "manifest of another platform", make: document("index", func(a *answer) { a.index.Manifests[1].Platform.Architecture = "s390x" })},
		{name: "manifest of another platform by its config", make: document("index", func(a *answer) {
			a.index.Manifests[1].Platform = nil
		})},
		{name: "index has a better manifest", make: document("index", func(a *answer) {
			a.index.Manifests[1].Platform.Architecture = "386"
			a.index.Manifests[0].Platform.Architecture = "amd64"
		})},
		{name: "manifest is also an index", make: document("manifest", func(a *answer) { a.manifest.MediaType = ocispec.MediaTypeImageIndex })},
		{name: "config of another image", make: document("manifest", func(a *answer) { a.manifest.Config.Digest = digest.FromString("x") })},
		{name: "config of another kind", make: document("manifest", func(a *answer) { a.manifest.Config.MediaType = ocispec.MediaTypeEmptyJSON })},
		{name: "manifest has more layers", make: document("manifest", func(a *answer) { a.manifest.Layers = append(a.manifest.Layers, a.manifest.Layers[0]) })},
		{name: "layers exchanged", make: document("manifest", func(a *answer) {
			a.manifest.Layers[0], a.manifest.Layers[1] = a.manifest.Layers[1], a.manifest.Layers[0]
		})},
		{name: "diff IDs of another image", make: document("config", func(a *answer) { a.config.RootFS.DiffIDs[1] = digest.FromString("x") })},
		{name: "diff IDs missing", make: document("config", func(a *answer) { a.config.RootFS.DiffIDs = nil })},
		{name: "diff ID malformed", make: document("config", func(a *answer) { a.config.RootFS.DiffIDs[0] = "../../etc/passwd" })},
		{name: "size of layer", make: bent(func(_ *testing.T, a *answer) { a.header.Layers[0].Size++ })},
		{name: "digest of layer", make: bent(func(_ *testing.T, a *answer) { a.header.Layers[0].Digest = evil })},
		{name: "media type of layer", make: bent(func(_ *testing.T, a *answer) { a.header.Layers[0].MediaType = "text/html" })},
		{name: "layer missing in header", make: bent(func(_ *testing.T, a *answer) { a.header.Layers, a.tocs = a.header.Layers[:1], a.tocs[:1] })},
		{name: "TOC bytes changed", make: bent(func(_ *testing.T, a *answer) { a.tocs[0] = bytes.Replace(a.tocs[0], []byte("a"), []byte("c"), 1) })},
		{name: "TOCs exchanged", make: bent(func(_ *testing.T, a *answer) { a.tocs[0], a.tocs[1] = a.tocs[1], a.tocs[0] })},
		{name: "TOC is garbage", make: bent(func(_ *testing.T, a *answer) {
			a.tocs[0] = []byte("garbage")
			a.header.Layers[0].TOC = sum(a.tocs[0])
		})},
		{name: "TOC of another layer", make: bent(func(t *testing.T, a *answer) { reencode(t, a, func(tc *toc.TOC) { tc.DiffID = evil }) })},
		{name: "TOC with a name that climbs", make: bent(func(t *testing.T, a *answer) {
			reencode(t, a, func(tc *toc.TOC) { tc.Entries[0].Name = "../../etc/cron.d/x" })
		})},
		{name: "TOC with an absolute name", make: bent(func(t *testing.T, a *answer) {
			reencode(t, a, func(tc *toc.TOC) { tc.Entries[0].Name = "/etc/cron.d/x" })
		})},
		{name: "TOC not sent", make: bent(func(_ *testing.T, a *answer) { a.tocs = a.tocs[:1] })},
		{name: "two TOCs of one layer", make: bent(func(_ *testing.T, a *answer) { a.header.Layers[1].DiffID = a.header.Layers[0].DiffID })},
		{name: "name of stream", make: bent(func(_ *testing.T, a *answer) { a.header.Stream = strings.Repeat("x", maxStream+1) })},
		{name: "name of stream for a terminal", make: bent(func(_ *testing.T, a *answer) { a.header.Stream = "\x1b[2J" })},
		{name: "negative totals", make: bent(func(_ *testing.T, a *answer) { a.header.TotalBytes = -1 })},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			req := request
			if tc.ref != "" {
				req.Ref = tc.ref
			}
			if tc.name == "manifest of another platform by its config" {
				req.Platform = "linux/s390x"
			}
			m, err := read(t, tc.make(t), req, Held{})
			if !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, wire.ErrTruncated) {
				t.Fatalf("got %v, %v, want ErrInvalid", m, err)
			}
			if m != nil {
				t.Error("got metadata with the error")
			}
			if strings.ContainsRune(err.Error(), '\x1b') {
				t.Errorf("escape in %q", err)
			}
		})
	}
}

func TestReadHeaderProgressThenRetry(t *testing.T) {
	a := newAnswer(t, nil)
	asked := 0
	c := serve(t, func(_ http.ResponseWriter, r *http.Request, w *wire.Writer) {
		var got wire.DeltaRequest
		if err := wire.DecodeRequest(r.Body, r.Header.Get("Content-Encoding"), &got); err != nil {
			t.Errorf("request: %v", err)
		}
		if asked++; asked == 1 {
			_ = w.Progress(wire.Progress{Stage: "ingest\x07", Done: 1, Total: 3})
			_ = w.Progress(wire.Progress{Stage: "ingest", Done: 3, Total: 3})
			_ = w.Retry()
			return
		}
		a.write(t, w)
	})
	pull := func() (*Metadata, []wire.Progress, error) {
		b, err := c.Delta(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		var seen []wire.Progress
		m, err := ReadHeader(b, request, Held{}, func(p wire.Progress) { seen = append(seen, p) })
		if err == nil {
			for _, want := range []wire.FrameType{wire.FrameData, wire.FrameEnd} {
				if f, err := b.Next(); err != nil || f.Type != want {
					t.Errorf("got frame %v, %v, want %v", f.Type, err, want)
				}
			}
			if _, err := b.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("after the end: got %v, want EOF", err)
			}
			if b.WireBytes() == 0 || b.RequestBytes() == 0 {
				t.Errorf("counted %d bytes received, %d sent", b.WireBytes(), b.RequestBytes())
			}
		}
		return m, seen, err
	}
	_, seen, err := pull()
	if !errors.Is(err, ErrRetry) || !Retryable(err) {
		t.Fatalf("got %v, want ErrRetry", err)
	}
	if len(seen) != 2 || seen[0].Stage != "ingest " || seen[1].Done != 3 {
		t.Errorf("got progress %+v", seen)
	}
	if _, _, err := pull(); err != nil {
		t.Fatal(err)
	}
}

func TestReadHeaderErrorFrame(t *testing.T) {
	c := serve(t, func(_ http.ResponseWriter, _ *http.Request, w *wire.Writer) {
		_ = w.Progress(wire.Progress{Stage: "ingest"})
		_ = w.Error(&wire.Error{Code: wire.CodeNotFound, Message: "no\nsuch image"})
	})
	b, err := c.Delta(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, err = ReadHeader(b, request, Held{}, nil)
	var refused *wire.Error
	if !errors.As(err, &refused) || refused.Message != "no such image" || !errdefs.IsNotFound(err) || Retryable(err) {
		t.Errorf("got %v, want not found", err)
	}
}
