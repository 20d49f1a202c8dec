// Package weird makes OCI images that no build tool would make and that are valid
// all the same: what a lazy file system must show exactly as an unpacked one does.
package weird

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Tag of every image in its layout.
const Tag = "v1"

// shape of what the tag names.
type shape int

const (
	single shape = iota // a manifest
	index               // an index with a foreign platform
	attest              // an index with an attestation manifest, as buildkit makes it
)

// Image is one hand-made image.
type Image struct {
	Name   string
	docker bool // Docker's media types
	shape  shape
	layers []func(*layer)
	others map[string][]func(*layer) // of other architectures: the tag names an index
	comp   func(i int) compression   // nil: gzip
}

// Write writes the image as an OCI image layout to dir.
func (im Image) Write(dir string) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	s := &store{blobs: blobs, docker: im.docker}
	top, err := im.platform(s, "amd64", im.layers)
	if err != nil {
		return err
	}
	if len(im.others) > 0 {
		all := []ocispec.Descriptor{top}
		for _, arch := range slices.Sorted(maps.Keys(im.others)) {
			m, err := im.platform(s, arch, im.others[arch])
			if err != nil {
				return err
			}
			all = append(all, m)
		}
		top = s.index(all...)
	}
	switch im.shape {
	case index:
		// Nobody can unpack this layer: who tries has read more than the platform asked for.
		junk := s.put(ocispec.MediaTypeImageLayer, "not a layer")
		foreign := s.manifest("s390x", []layerFile{{diffID: junk.Digest, digest: junk.Digest, size: junk.Size}})
		foreign.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
		top = s.index(foreign, top)
	case attest:
		a := s.attestation(top)
		top = s.index(top, a)
	}
	top.Platform = nil
	top.Annotations = map[string]string{ocispec.AnnotationRefName: Tag}
	if s.err != nil {
		return fmt.Errorf("%s: %w", im.Name, s.err)
	}
	entry, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{top}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), entry, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

// platform writes the layers and the manifest of an architecture.
func (im Image) platform(s *store, arch string, fills []func(*layer)) (ocispec.Descriptor, error) {
	layers := make([]layerFile, len(fills))
	for i, fill := range fills {
		c := gzipped
		if im.comp != nil {
			c = im.comp(i)
		}
		l, err := writeLayer(s.blobs, c, fill)
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("%s: layer %d: %w", im.Name, i, err)
		}
		layers[i] = l
	}
	m := s.manifest(arch, layers)
	m.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	if arch == "arm64" {
		m.Platform.Variant = "v8"
	}
	return m, nil
}

// store writes JSON blobs; the first error stays.
type store struct {
	blobs  string
	docker bool
	err    error
}

func (s *store) put(mediaType string, v any) ocispec.Descriptor {
	b, err := json.Marshal(v)
	if err != nil && s.err == nil {
		s.err = err
	}
	d := digest.FromBytes(b)
	if err := os.WriteFile(filepath.Join(s.blobs, d.Encoded()), b, 0o644); err != nil && s.err == nil {
		s.err = err
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

const dockerPrefix = "application/vnd.docker."

func (s *store) manifest(arch string, layers []layerFile) ocispec.Descriptor {
	manifestType, configType := ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig
	if s.docker {
		manifestType = dockerPrefix + "distribution.manifest.v2+json"
		configType = dockerPrefix + "container.image.v1+json"
	}
	conf := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config:   ocispec.ImageConfig{Cmd: []string{"/none"}},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifestType}
	for _, l := range layers {
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, l.diffID)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: s.layerType(l.compression), Digest: l.digest, Size: l.size})
	}
	m.Config = s.put(configType, conf)
	return s.put(manifestType, m)
}

func (s *store) layerType(c compression) string {
	if s.docker {
		return dockerPrefix + map[compression]string{
			gzipped: "image.rootfs.diff.tar.gzip", zstandard: "image.rootfs.diff.tar.zstd", plain: "image.rootfs.diff.tar",
		}[c]
	}
	return map[compression]string{
		gzipped: ocispec.MediaTypeImageLayerGzip, zstandard: ocispec.MediaTypeImageLayerZstd, plain: ocispec.MediaTypeImageLayer,
	}[c]
}

func (s *store) index(m ...ocispec.Descriptor) ocispec.Descriptor {
	t := ocispec.MediaTypeImageIndex
	if s.docker {
		t = dockerPrefix + "distribution.manifest.list.v2+json"
	}
	return s.put(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: t, Manifests: m})
}

func (s *store) attestation(of ocispec.Descriptor) ocispec.Descriptor {
	const inToto = "application/vnd.in-toto+json"
	statement := s.put(inToto, map[string]string{"_type": "https://in-toto.io/Statement/v0.1"})
	conf := s.put(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "unknown", Architecture: "unknown"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{statement.Digest}},
	})
	d := s.put(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: conf, Layers: []ocispec.Descriptor{statement},
	})
	d.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	d.Annotations = map[string]string{
		"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": of.Digest.String(),
	}
	return d
}
