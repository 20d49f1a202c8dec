// Package convert copies an image between registries and makes its layers eStargz or
// zstd:chunked on the way. Both are read by every runtime as the gzip or zstd that they
// are; runtimes that know them can read single files. The manifest names Starlight's TOC of
// each layer, so that a node need not believe proxyd which one that is.
package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Options of a conversion.
type Options struct {
	Format Format
	// Platforms picks from an index. Nil: all, and the result is an index if the source
	// is one. Of one platform, the result is its manifest.
	Platforms platforms.MatchComparer
	// Dir is for temporary files: the layer under way, as it was and as it becomes. The
	// library needs as much again, in $TMPDIR. Empty: $TMPDIR.
	Dir string
	// Layer, if not nil, is told of each layer when it has been pushed.
	Layer func(from, to ocispec.Descriptor)
}

// Result says what was made.
type Result struct {
	ocispec.Descriptor
	// Manifests are the images in it, with their platforms.
	Manifests []ocispec.Descriptor
	// Dropped are manifests of an index that are no images, such as attestations: they
	// are about images that the result does not have.
	Dropped []ocispec.Descriptor
}

// maxDocument is the largest index, manifest or config that is read.
const maxDocument = 16 << 20

// Image converts an image and tags the result. Layers are fetched, converted and pushed
// one after the other; the same image gives the same result.
func Image(ctx context.Context, src oras.ReadOnlyTarget, srcRef string, dst oras.Target, dstTag string, o Options) (*Result, error) {
	desc, err := src.Resolve(ctx, srcRef)
	if err != nil {
		return nil, err
	}
	c := &converter{Options: o, src: src, dst: dst, layers: map[digest.Digest]layer{}}
	b, mediaType, err := c.top(ctx, desc)
	if err != nil {
		return nil, err
	}
	pushed, err := oras.TagBytes(ctx, dst, mediaType, b, dstTag)
	if err != nil {
		return nil, fmt.Errorf("push %s: %w", dstTag, err)
	}
	c.result.Descriptor = pushed
	return &c.result, nil
}

type converter struct {
	Options
	src    oras.ReadOnlyTarget
	dst    oras.Target
	layers map[digest.Digest]layer // converted, by the digest of the original
	result Result
}

// top converts what the reference names. It returns a document that is not pushed yet.
func (c *converter) top(ctx context.Context, desc ocispec.Descriptor) (b []byte, mediaType string, err error) {
	switch {
	case images.IsManifestType(desc.MediaType):
		b, err = c.manifest(ctx, desc)
		if err != nil {
			return nil, "", err
		}
		d := described(ocispec.MediaTypeImageManifest, b)
		d.Platform = desc.Platform
		c.result.Manifests = append(c.result.Manifests, d)
		return b, d.MediaType, nil
	case !images.IsIndexType(desc.MediaType):
		return nil, "", fmt.Errorf("%s is a %q, not an image", desc.Digest, desc.MediaType)
	}
	var index ocispec.Index
	if err := c.read(ctx, desc, &index); err != nil {
		return nil, "", err
	}
	picked, err := c.pick(index.Manifests)
	if err != nil {
		return nil, "", err
	}
	if c.Platforms != nil {
		return c.top(ctx, picked[0])
	}
	index.MediaType, index.Versioned = ocispec.MediaTypeImageIndex, specs.Versioned{SchemaVersion: 2}
	index.Manifests = nil
	for _, d := range picked {
		b, err := c.manifest(ctx, d)
		if err != nil {
			return nil, "", fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		nd := described(ocispec.MediaTypeImageManifest, b)
		nd.Platform, nd.Annotations = d.Platform, d.Annotations
		if err := c.push(ctx, nd, b); err != nil {
			return nil, "", err
		}
		index.Manifests = append(index.Manifests, nd)
	}
	c.result.Manifests = index.Manifests
	b, err = json.Marshal(index)
	return b, ocispec.MediaTypeImageIndex, err
}

// pick returns the images to convert: the best for the platform, or all.
func (c *converter) pick(all []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	var picked []ocispec.Descriptor
	for _, d := range all {
		switch {
		case !images.IsManifestType(d.MediaType), d.Platform != nil && d.Platform.OS == "unknown":
			c.result.Dropped = append(c.result.Dropped, d)
		case c.Platforms == nil, d.Platform != nil && c.Platforms.Match(*d.Platform):
			picked = append(picked, d)
		}
	}
	if len(picked) == 0 {
		return nil, errors.New("the index has no image for the platform")
	}
	if c.Platforms != nil {
		c.result.Dropped = nil // nobody asked for them
		slices.SortStableFunc(picked, func(a, b ocispec.Descriptor) int {
			switch {
			case c.Platforms.Less(*a.Platform, *b.Platform):
				return -1
			case c.Platforms.Less(*b.Platform, *a.Platform):
				return 1
			}
			return 0
		})
	}
	return picked, nil
}

// manifest converts one image but for its manifest, which it returns.
func (c *converter) manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	var m ocispec.Manifest
	if err := c.read(ctx, desc, &m); err != nil {
		return nil, err
	}
	if !images.IsConfigType(m.Config.MediaType) {
		return nil, fmt.Errorf("its config is a %q: this is not a container image", m.Config.MediaType)
	}
	config, err := content.FetchAll(ctx, limited{c.src}, m.Config)
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	diffIDs := make([]digest.Digest, len(m.Layers))
	for i, l := range m.Layers {
		converted, err := c.layer(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		m.Layers[i], diffIDs[i] = converted.Descriptor, converted.diffID
		m.Layers[i].Annotations = merged(l.Annotations, converted.Annotations)
	}
	if config, err = withDiffIDs(config, diffIDs); err != nil {
		return nil, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	annotations := m.Config.Annotations
	m.Config = described(ocispec.MediaTypeImageConfig, config)
	m.Config.Annotations = annotations
	if err := c.push(ctx, m.Config, config); err != nil {
		return nil, err
	}
	// Descriptors of Docker's media types have no annotations.
	m.MediaType, m.Versioned = ocispec.MediaTypeImageManifest, specs.Versioned{SchemaVersion: 2}
	return json.Marshal(m)
}

// withDiffIDs replaces the diff IDs of a config, and nothing else of it.
func withDiffIDs(config []byte, diffIDs []digest.Digest) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, err
	}
	var rootfs ocispec.RootFS
	if err := json.Unmarshal(fields["rootfs"], &rootfs); err != nil {
		return nil, fmt.Errorf("rootfs: %w", err)
	}
	if len(rootfs.DiffIDs) != len(diffIDs) {
		return nil, fmt.Errorf("it has %d diff IDs for %d layers", len(rootfs.DiffIDs), len(diffIDs))
	}
	rootfs.DiffIDs = diffIDs
	var err error
	if fields["rootfs"], err = json.Marshal(rootfs); err != nil {
		return nil, err
	}
	return json.Marshal(fields)
}

// read reads an index or manifest.
func (c *converter) read(ctx context.Context, desc ocispec.Descriptor, v any) error {
	b, err := content.FetchAll(ctx, limited{c.src}, desc)
	if err != nil {
		return fmt.Errorf("%s: %w", desc.Digest, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", desc.Digest, err)
	}
	return nil
}

// push pushes a document unless it is there.
func (c *converter) push(ctx context.Context, desc ocispec.Descriptor, b []byte) error {
	if _, err := oras.PushBytes(ctx, c.dst, desc.MediaType, b); err != nil && !exists(err) {
		return fmt.Errorf("push %s: %w", desc.Digest, err)
	}
	return nil
}

func described(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// stale are the prefixes of annotations about how a layer was compressed, and about its
// table of contents.
var stale = []string{"io.containers.", "containerd.io/snapshot/stargz/", toc.AnnotationPrefix}

// merged are the annotations of a layer, without those that were true of the old one only.
func merged(old, converted map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range old {
		if !slices.ContainsFunc(stale, func(prefix string) bool { return strings.HasPrefix(k, prefix) }) {
			out[k] = v
		}
	}
	maps.Copy(out, converted)
	return out
}
