package convert

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"

	"encoding/json"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
	"github.com/starlight-delta/starlight/proxyd/wire/toc/fromtar"
)

func layout(t *testing.T) *oci.Store {
	t.Helper()
	s, err := oci.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func push(t *testing.T, s oras.Target, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := content.NewDescriptorFromBytes(mediaType, b)
	if err := s.Push(t.Context(), d, bytes.NewReader(b)); err != nil && !exists(err) {
		t.Fatal(err)
	}
	return d
}

func pushJSON(t *testing.T, s oras.Target, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return push(t, s, mediaType, b)
}

type contents map[string]string

func tarOf(t *testing.T, files contents) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o640, Size: int64(len(files[name]))})
		if err == nil {
			_, err = io.WriteString(w, files[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t *testing.T, b []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(b, nil)
}

// image pushes an image of Docker's types for a platform.
func image(t *testing.T, s oras.Target, arch string, layers ...contents) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: images.MediaTypeDockerSchema2Manifest}
	var diffIDs []digest.Digest
	for i, files := range layers {
		b := tarOf(t, files)
		diffIDs = append(diffIDs, digest.FromBytes(b))
		mediaType := images.MediaTypeDockerSchema2LayerGzip
		switch i % 3 {
		case 0:
			b = zipped(t, b)
		case 1:
			b, mediaType = zstded(t, b), images.MediaTypeDockerSchema2LayerZstd
		default:
			mediaType = images.MediaTypeDockerSchema2Layer
		}
		l := push(t, s, mediaType, b)
		l.Annotations = map[string]string{toc.AnnotationPrefix + "v0": "of the old layer"}
		m.Layers = append(m.Layers, l)
	}
	m.Config = pushJSON(t, s, images.MediaTypeDockerSchema2Config, map[string]any{
		"architecture": arch, "os": "linux", "unheard of": 1, "rootfs": ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	d := pushJSON(t, s, m.MediaType, m)
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return d
}

var base = contents{"etc/passwd": "root", "usr/bin/app": strings.Repeat("code ", 1<<17), "empty": ""}

// source is an index of two images that share a layer, and of an attestation.
func source(t *testing.T) *oci.Store {
	t.Helper()
	s := layout(t)
	attestation := pushJSON(t, s, ocispec.MediaTypeImageManifest, map[string]any{"schemaVersion": 2})
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	d := pushJSON(t, s, images.MediaTypeDockerSchema2ManifestList, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: images.MediaTypeDockerSchema2ManifestList,
		Manifests: []ocispec.Descriptor{
			image(t, s, "amd64", base, contents{"usr/bin/.wh.app": "", "new": "amd64"}, contents{"third": "3"}),
			attestation,
			image(t, s, "arm64", base, contents{"new": "arm64"}),
		},
	})
	if err := s.Tag(t.Context(), d, "1"); err != nil {
		t.Fatal(err)
	}
	return s
}

// layerFiles decompresses a layer as one does who knows gzip and zstd only.
func layerFiles(t *testing.T, b []byte) (contents, digest.Digest) {
	t.Helper()
	var r io.Reader
	var err error
	if bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
		r, err = gzip.NewReader(bytes.NewReader(b))
	} else {
		r, err = zstd.NewReader(bytes.NewReader(b))
	}
	if err != nil {
		t.Fatal(err)
	}
	h := digest.Canonical.Digester()
	tee := io.TeeReader(r, h.Hash())
	files := contents{}
	for tr := tar.NewReader(tee); ; {
		e, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name] = string(c)
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		t.Fatal(err)
	}
	delete(files, estargz.TOCTarName)
	delete(files, estargz.NoPrefetchLandmark)
	return files, h.Digest()
}

func fetch(t *testing.T, s content.Fetcher, d ocispec.Descriptor, v any) []byte {
	t.Helper()
	b, err := content.FetchAll(t.Context(), s, d)
	if err != nil {
		t.Fatal(err)
	}
	if v != nil {
		if err := json.Unmarshal(b, v); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// checkImage compares a converted image with what it was made of.
func checkImage(t *testing.T, s content.Fetcher, d ocispec.Descriptor, f Format, want ...contents) {
	t.Helper()
	var m ocispec.Manifest
	fetch(t, s, d, &m)
	var config struct {
		Unheard int            `json:"unheard of"`
		RootFS  ocispec.RootFS `json:"rootfs"`
	}
	fetch(t, s, m.Config, &config)
	if m.MediaType != ocispec.MediaTypeImageManifest || m.Config.MediaType != ocispec.MediaTypeImageConfig || config.Unheard != 1 {
		t.Errorf("got manifest %+v with config %+v", m, config)
	}
	if len(m.Layers) != len(want) || len(config.RootFS.DiffIDs) != len(want) {
		t.Fatalf("got %d layers and %d diff IDs, want %d", len(m.Layers), len(config.RootFS.DiffIDs), len(want))
	}
	for i, l := range m.Layers {
		b := fetch(t, s, l, nil)
		got, diffID := layerFiles(t, b)
		if d := cmp.Diff(want[i], got); d != "" || diffID != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d: diff ID %s, want %s, files: %s", i, diffID, config.RootFS.DiffIDs[i], d)
		}
		mediaType, opts := ocispec.MediaTypeImageLayerGzip, []estargz.OpenOption(nil)
		if f == ZstdChunked {
			mediaType, opts = ocispec.MediaTypeImageLayerZstd, append(opts, estargz.WithDecompressors(new(zstdchunked.Decompressor)))
			if l.Annotations[zstdchunked.ManifestPositionAnnotation] == "" || l.Annotations[zstdchunked.ManifestChecksumAnnotation] == "" {
				t.Errorf("layer %d: got annotations %v", i, l.Annotations)
			}
		}
		r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(b), 0, l.Size), opts...)
		if err != nil || l.MediaType != mediaType {
			t.Fatalf("layer %d: %v, %s", i, err, l.MediaType)
		}
		if _, err := r.VerifyTOC(digest.Digest(l.Annotations[estargz.TOCJSONDigestAnnotation])); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
		c, err := fromtar.Layer(t.Context(), bytes.NewReader(b), nil)
		if err != nil {
			t.Fatal(err)
		}
		named, err := toc.Named(l.Annotations)
		if _, stale := l.Annotations[toc.AnnotationPrefix+"v0"]; err != nil || stale || named != sha256.Sum256(c.Encode()) {
			t.Errorf("layer %d: got annotations %v, %v, want the digest of its TOC", i, l.Annotations, err)
		}
		if e, ok := r.Lookup("etc/passwd"); i == 0 && (!ok || e.Size != 4) {
			t.Errorf("layer %d: its table of contents has no /etc/passwd", i)
		}
	}
}

func TestImage(t *testing.T) {
	amd64 := []contents{base, {"usr/bin/.wh.app": "", "new": "amd64"}, {"third": "3"}}
	arm64 := []contents{base, {"new": "arm64"}}
	for _, f := range []Format{EStargz, ZstdChunked} {
		t.Run(string(f), func(t *testing.T) {
			src, dst := source(t), layout(t)
			var told []string
			o := Options{Format: f, Dir: t.TempDir(), Layer: func(from, _ ocispec.Descriptor) { told = append(told, from.Digest.String()) }}
			r, err := Image(t.Context(), src, "1", dst, "conv", o)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := dst.Resolve(t.Context(), "conv"); err != nil || got.Digest != r.Digest || r.MediaType != ocispec.MediaTypeImageIndex {
				t.Errorf("got %+v, %v, want %+v", got, err, r.Descriptor)
			}
			if len(told) != 4 || len(r.Dropped) != 1 || len(r.Manifests) != 2 {
				t.Fatalf("converted %q, dropped %d, got %d images; want 4 layers, 1 dropped, 2 images", told, len(r.Dropped), len(r.Manifests))
			}
			var index ocispec.Index
			fetch(t, dst, r.Descriptor, &index)
			if index.Manifests[0].Platform.Architecture != "amd64" || index.Manifests[1].Platform.Architecture != "arm64" {
				t.Errorf("got %+v", index.Manifests)
			}
			checkImage(t, dst, index.Manifests[0], f, amd64...)
			checkImage(t, dst, index.Manifests[1], f, arm64...)

			o.Platforms = platforms.Only(platforms.MustParse("linux/arm64"))
			one, err := Image(t.Context(), src, "1", dst, "one", o)
			if err != nil {
				t.Fatal(err)
			}
			if one.Digest != index.Manifests[1].Digest || one.MediaType != ocispec.MediaTypeImageManifest || len(one.Dropped) != 0 {
				t.Errorf("one platform: got %+v, want the manifest that the index has", one)
			}
			o.Platforms = platforms.Only(platforms.MustParse("linux/s390x"))
			if _, err := Image(t.Context(), src, "1", dst, "none", o); err == nil || !strings.Contains(err.Error(), "no image for the platform") {
				t.Errorf("platform that is not there: %v", err)
			}

			// What is converted can be converted again, to the other format, too.
			other := map[Format]Format{EStargz: ZstdChunked, ZstdChunked: EStargz}[f]
			again, err := Image(t.Context(), dst, "one", dst, "again", Options{Format: other})
			if err != nil {
				t.Fatal(err)
			}
			checkImage(t, dst, again.Descriptor, other, arm64...)
			var m ocispec.Manifest
			fetch(t, dst, again.Descriptor, &m)
			if _, ok := m.Layers[0].Annotations[zstdchunked.ManifestPositionAnnotation]; ok != (other == ZstdChunked) {
				t.Errorf("as %s it has annotations %v", other, m.Layers[0].Annotations)
			}
		})
	}
}

func TestImageRefuses(t *testing.T) {
	s := layout(t)
	config := pushJSON(t, s, ocispec.MediaTypeImageConfig, ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{"sha256:00"}}})
	l := push(t, s, ocispec.MediaTypeImageLayer, tarOf(t, base))
	with := func(change func(*ocispec.Manifest)) ocispec.Descriptor {
		m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{l}}
		change(&m)
		return pushJSON(t, s, m.MediaType, m)
	}
	lost := content.NewDescriptorFromBytes(l.MediaType, []byte("lost"))
	long := push(t, s, ocispec.MediaTypeImageLayer, tarOf(t, contents{strings.Repeat("x", toc.MaxComponent+1): ""}))
	for name, tt := range map[string]struct {
		desc ocispec.Descriptor
		want string
	}{
		"artifact":        {with(func(m *ocispec.Manifest) { m.Config.MediaType = "application/x" }), "not a container image"},
		"foreign layer":   {with(func(m *ocispec.Manifest) { m.Layers[0].URLs = []string{"https://x"} }), "elsewhere"},
		"encrypted layer": {with(func(m *ocispec.Manifest) { m.Layers[0].MediaType += "+encrypted" }), "encrypted"},
		"no layer":        {with(func(m *ocispec.Manifest) { m.Layers[0].MediaType = "text/plain" }), "not a layer"},
		"lost layer":      {with(func(m *ocispec.Manifest) { m.Layers[0] = lost }), "not found"},
		"no TOC":          {with(func(m *ocispec.Manifest) { m.Layers[0] = long }), "for its TOC"},
		"diff IDs":        {with(func(m *ocispec.Manifest) { m.Layers = nil }), "1 diff IDs for 0 layers"},
		"no image":        {l, "not an image"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := s.Tag(t.Context(), tt.desc, "x"); err != nil {
				t.Fatal(err)
			}
			dst := layout(t)
			if _, err := Image(t.Context(), s, "x", dst, "y", Options{Format: EStargz}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if _, err := dst.Resolve(t.Context(), "y"); err == nil {
				t.Error("it has been tagged")
			}
		})
	}
}
