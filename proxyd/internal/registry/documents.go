package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Media types of Docker.
const (
	dockerIndex        = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerLayerZstd    = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	dockerReferenceKey = "vnd.docker.reference.type" // annotation of attestations
)

var (
	indexTypes    = []string{ocispec.MediaTypeImageIndex, dockerIndex}
	imageTypes    = []string{ocispec.MediaTypeImageManifest, dockerManifest}
	configTypes   = []string{ocispec.MediaTypeImageConfig, dockerConfig}
	layerTypes    = []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, dockerLayer, dockerLayerGzip, dockerLayerZstd}
	errNoPlatform = errors.New("no manifest for the platform")
)

// manifestDoc is an index or a manifest: which one is told by its media type,
// and a document that could be both is refused.
type manifestDoc struct {
	MediaType string               `json:"mediaType"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`
}

func decodeManifest(b *Blob) (*manifestDoc, error) {
	var m manifestDoc
	if err := json.Unmarshal(b.Bytes, &m); err != nil {
		return nil, unsupported("%s is no manifest", b.Digest)
	}
	isIndex, isImage := slices.Contains(indexTypes, b.MediaType), slices.Contains(imageTypes, b.MediaType)
	switch {
	case !isIndex && !isImage:
		return nil, unsupported("media type %.100q", b.MediaType)
	case m.MediaType != "" && m.MediaType != b.MediaType:
		return nil, unsupported("%s is of type %.100q, not %q", b.Digest, m.MediaType, b.MediaType)
	case isIndex && (m.Config != nil || m.Layers != nil), isImage && (m.Config == nil || m.Manifests != nil):
		return nil, unsupported("%s is not what its media type says", b.Digest)
	case len(m.Layers) > wire.MaxLayers:
		return nil, unsupported("%d layers", len(m.Layers))
	}
	return &m, nil
}

// candidates are the entries of an index in the order in which containerd would
// choose between them.
func candidates(m *manifestDoc, match platforms.MatchComparer) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	for _, d := range m.Manifests {
		if _, attestation := d.Annotations[dockerReferenceKey]; attestation {
			continue
		}
		if !slices.Contains(indexTypes, d.MediaType) && !slices.Contains(imageTypes, d.MediaType) {
			continue
		}
		if d.Platform == nil || match.Match(*d.Platform) {
			out = append(out, d)
		}
	}
	slices.SortStableFunc(out, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform == nil && b.Platform == nil:
			return 0
		case a.Platform == nil:
			return 1
		case b.Platform == nil, match.Less(*a.Platform, *b.Platform):
			return -1
		case match.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return out
}

// config is what of an image config matters here.
type config struct {
	ocispec.Platform
	RootFS struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// decodeConfig decodes the config of a manifest and joins its diff IDs with the layers.
func decodeConfig(b *Blob, m *manifestDoc) (*config, []Layer, error) {
	var c config
	if err := json.Unmarshal(b.Bytes, &c); err != nil {
		return nil, nil, unsupported("config %s is malformed", b.Digest)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, nil, unsupported("%d layers with %d diff IDs", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	layers := make([]Layer, len(m.Layers))
	for i, d := range m.Layers {
		if !slices.Contains(layerTypes, d.MediaType) {
			return nil, nil, unsupported("layer of media type %.100q", d.MediaType)
		}
		l := Layer{Descriptor: d}
		var err error
		if l.Digest, err = parseDigest(d.Digest); err != nil {
			return nil, nil, err
		}
		if l.DiffID, err = parseDigest(digest.Digest(c.RootFS.DiffIDs[i])); err != nil {
			return nil, nil, err
		}
		if d.Size < 0 {
			return nil, nil, unsupported("layer of %d bytes", d.Size)
		}
		layers[i] = l
	}
	return &c, layers, nil
}

func parseDigest(d digest.Digest) (toc.Digest, error) {
	t, err := toc.ParseDigest(d.String())
	if err != nil {
		return t, unsupported("digest %.100q is no sha256", d)
	}
	return t, nil
}

// formatPlatform names a platform for messages and keys.
func formatPlatform(p ocispec.Platform) string {
	return fmt.Sprintf("%s(%s)", platforms.Format(p), p.OSVersion)
}

// checkSize refuses documents that are too large before they are asked for.
func checkSize(d ocispec.Descriptor) error {
	if d.Size < 0 || d.Size > wire.MaxBlob {
		return unsupported("document %s of %d bytes", d.Digest, d.Size)
	}
	return nil
}
