package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// conversion of one image to eStargz. It is what "ctr-remote image optimize" does
// with a recorded start: in each layer the recorded files come first.
type conversion struct {
	from, tag, to, first string

	files []string
}

func (c *conversion) convert(ctx context.Context) error {
	if c.first != "" {
		b, err := os.ReadFile(c.first)
		if err != nil {
			return err
		}
		c.files = strings.Split(strings.TrimSpace(string(b)), "\n")
	}
	var index ocispec.Index
	if err := readJSON(filepath.Join(c.from, "index.json"), &index); err != nil {
		return err
	}
	var desc *ocispec.Descriptor
	for i := range index.Manifests {
		if index.Manifests[i].Annotations[ocispec.AnnotationRefName] == c.tag {
			desc = &index.Manifests[i]
		}
	}
	if desc == nil {
		return fmt.Errorf("no tag %s in %s", c.tag, c.from)
	}
	var m ocispec.Manifest
	if err := readJSON(blob(c.from, desc.Digest), &m); err != nil {
		return err
	}
	var conf ocispec.Image
	if err := readJSON(blob(c.from, m.Config.Digest), &conf); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(c.to, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	for i := range m.Layers {
		diffID, err := c.layer(ctx, &m.Layers[i])
		if err != nil {
			return fmt.Errorf("layer %s: %w", m.Layers[i].Digest, err)
		}
		conf.RootFS.DiffIDs[i] = diffID
	}
	// Only OCI's media types have annotations on layers.
	var err error
	if m.Config, err = c.writeJSON(ocispec.MediaTypeImageConfig, conf); err != nil {
		return err
	}
	m.Versioned, m.MediaType = specs.Versioned{SchemaVersion: 2}, ocispec.MediaTypeImageManifest
	md, err := c.writeJSON(m.MediaType, m)
	if err != nil {
		return err
	}
	md.Annotations = map[string]string{ocispec.AnnotationRefName: c.tag}
	out, err := json.Marshal(ocispec.Index{Versioned: m.Versioned, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{md}})
	if err != nil {
		return err
	}
	layout := []byte(`{"imageLayoutVersion": "` + ocispec.ImageLayoutVersion + `"}`)
	return errors.Join(
		os.WriteFile(filepath.Join(c.to, ocispec.ImageLayoutFile), layout, 0o644),
		os.WriteFile(filepath.Join(c.to, "index.json"), out, 0o644))
}

// layer converts one layer and puts the new one into d; it returns its diff ID.
func (c *conversion) layer(ctx context.Context, d *ocispec.Descriptor) (digest.Digest, error) {
	f, err := os.Open(blob(c.from, d.Digest))
	if err != nil {
		return "", err
	}
	defer f.Close()
	var missing []string // files of other layers
	b, err := estargz.Build(io.NewSectionReader(f, 0, d.Size), estargz.WithContext(ctx),
		estargz.WithPrioritizedFiles(c.files), estargz.WithAllowPrioritizeNotFound(&missing))
	if err != nil {
		return "", err
	}
	defer b.Close()
	written, err := c.write(ocispec.MediaTypeImageLayerGzip, b)
	if err != nil {
		return "", err
	}
	if err := b.Close(); err != nil { // the digest of the TOC is known now
		return "", err
	}
	size, err := b.UncompressedSize()
	if err != nil {
		return "", err
	}
	written.Annotations = map[string]string{
		estargz.TOCJSONDigestAnnotation:         b.TOCDigest().String(),
		estargz.StoreUncompressedSizeAnnotation: fmt.Sprint(size),
	}
	*d = written
	return b.DiffID(), nil
}

func (c *conversion) writeJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return c.write(mediaType, bytes.NewReader(b))
}

func (c *conversion) write(mediaType string, r io.Reader) (d ocispec.Descriptor, err error) {
	f, err := os.CreateTemp(c.to, "blob-")
	if err != nil {
		return d, err
	}
	defer os.Remove(f.Name()) // unless it was renamed
	defer f.Close()
	h := digest.Canonical.Digester()
	n, err := io.Copy(io.MultiWriter(f, h.Hash()), r)
	if err != nil {
		return d, err
	}
	d = ocispec.Descriptor{MediaType: mediaType, Digest: h.Digest(), Size: n}
	return d, errors.Join(f.Close(), os.Rename(f.Name(), blob(c.to, d.Digest)))
}

func blob(layout string, d digest.Digest) string {
	return filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded())
}

func readJSON(file string, v any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
