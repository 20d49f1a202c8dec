package delta

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// checkDocuments follows the chain of digests from the reference over index and
// manifest to config and layers, and fills m with what it finds on the way.
func (m *Metadata) checkDocuments(docs []*Document, req wire.DeltaRequest) error {
	switch {
	case len(docs) == 2 && isManifest(docs[0].MediaType):
		m.Manifest, m.Config = docs[0], docs[1]
	case len(docs) == 3 && isIndex(docs[0].MediaType) && isManifest(docs[1].MediaType):
		m.Index, m.Manifest, m.Config = docs[0], docs[1], docs[2]
	default:
		return invalid("blobs are not index, manifest and config")
	}
	if _, pinned, ok := strings.Cut(req.Ref, "@"); ok && pinned != m.Target().Digest.String() {
		return invalid("the reference resolves to %s", m.Target().Digest)
	}
	if d := req.HaveManifest; !d.IsZero() && d.String() != m.Manifest.Digest.String() {
		return invalid("resumed manifest %s as %s", d, m.Manifest.Digest)
	}
	if err := m.checkManifest(); err != nil {
		return err
	}
	if err := m.checkConfig(); err != nil {
		return err
	}
	if m.Index != nil {
		return m.checkIndex(req.Platform)
	}
	return nil
}

// checkNamed compares the TOCs of the header with those that the manifest names.
func (m *Metadata) checkNamed() error {
	for i, l := range m.ImageManifest.Layers {
		h := m.Header.Layers[i]
		switch named, err := toc.Named(l.Annotations); {
		case err != nil:
			return fmt.Errorf("layer %s in manifest %s: %w", l.Digest, m.Manifest.Digest, err)
		case named.IsZero():
			m.Unnamed++
		case named != h.TOC:
			return invalid("proxyd's TOC of layer %s is %s, but manifest %s names %s: one of them is not that of the layer", h.DiffID, h.TOC, m.Manifest.Digest, named)
		}
	}
	return nil
}

// shape has the fields that tell documents apart whose media type lies.
type shape struct {
	MediaType string          `json:"mediaType"`
	Manifests json.RawMessage `json:"manifests"`
	Layers    json.RawMessage `json:"layers"`
	Config    json.RawMessage `json:"config"`
	FSLayers  json.RawMessage `json:"fsLayers"`
}

// parse decodes a manifest or index. What would be taken for another type by
// other readers of the same bytes is refused.
func parse(d *Document, v any, foreign func(shape) bool) error {
	var s shape
	if err := json.Unmarshal(d.Bytes, &s); err != nil {
		return invalid("%s %s: %v", d.MediaType, d.Digest, err)
	}
	if s.MediaType != "" && s.MediaType != d.MediaType || len(s.FSLayers) > 0 || foreign(s) {
		return invalid("%s is no %s", d.Digest, d.MediaType)
	}
	if err := json.Unmarshal(d.Bytes, v); err != nil {
		return invalid("%s %s: %v", d.MediaType, d.Digest, err)
	}
	return nil
}

func (m *Metadata) checkManifest() error {
	err := parse(m.Manifest, &m.ImageManifest, func(s shape) bool { return len(s.Manifests) > 0 })
	if err != nil {
		return err
	}
	if c := m.ImageManifest.Config; !same(c, m.Config.Descriptor) || !isConfig(c.MediaType) {
		return invalid("config %s is not that of manifest %s", m.Config.Digest, m.Manifest.Digest)
	}
	layers := m.Header.Layers
	if len(layers) != len(m.ImageManifest.Layers) {
		return invalid("header has %d layers, manifest %s has %d", len(layers), m.Manifest.Digest, len(m.ImageManifest.Layers))
	}
	for i, l := range m.ImageManifest.Layers {
		got := ocispec.Descriptor{MediaType: layers[i].MediaType, Digest: asOCI(layers[i].Digest), Size: layers[i].Size}
		if !same(l, got) {
			return invalid("layer %d of the header is not that of manifest %s", i, m.Manifest.Digest)
		}
	}
	return nil
}

func (m *Metadata) checkConfig() error {
	if err := json.Unmarshal(m.Config.Bytes, &m.ImageConfig); err != nil {
		return invalid("config %s: %v", m.Config.Digest, err)
	}
	diffIDs := m.ImageConfig.RootFS.DiffIDs
	if !slices.EqualFunc(m.Header.Layers, diffIDs, func(l wire.Layer, d digest.Digest) bool { return asOCI(l.DiffID) == d }) {
		return invalid("diff IDs of the header are not those of config %s", m.Config.Digest)
	}
	return nil
}

// checkIndex checks that the manifest is the one containerd would pick from the
// index. It fills in the platform of its descriptor.
func (m *Metadata) checkIndex(platform string) error {
	var index ocispec.Index
	err := parse(m.Index, &index, func(s shape) bool { return len(s.Layers) > 0 || len(s.Config) > 0 })
	if err != nil {
		return err
	}
	want, err := platforms.Parse(platform)
	if err != nil {
		return fmt.Errorf("platform of the request: %w", err)
	}
	matcher := platforms.Only(want)
	i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		return same(d, m.Manifest.Descriptor) && (d.Platform == nil || matcher.Match(*d.Platform))
	})
	if i < 0 {
		return invalid("manifest %s is not in index %s for platform %s", m.Manifest.Digest, m.Index.Digest, platform)
	}
	picked := index.Manifests[i].Platform
	if picked == nil {
		picked = &m.ImageConfig.Platform
		if !matcher.Match(*picked) {
			return invalid("manifest %s is for platform %s", m.Manifest.Digest, clean(platforms.Format(*picked)))
		}
	}
	for _, d := range index.Manifests {
		if d.Platform != nil && isManifest(d.MediaType) && matcher.Match(*d.Platform) && matcher.Less(*d.Platform, *picked) {
			return invalid("index %s has a better manifest than %s for platform %s", m.Index.Digest, m.Manifest.Digest, platform)
		}
	}
	m.Manifest.Platform = picked
	return nil
}

func same(a, b ocispec.Descriptor) bool {
	return a.MediaType == b.MediaType && a.Digest == b.Digest && a.Size == b.Size
}

func asOCI(d toc.Digest) digest.Digest { return digest.Digest(d.String()) }
