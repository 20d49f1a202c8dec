package classic

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// manifest is what a namespace has of an image that is being pulled.
type manifest struct {
	desc    ocispec.Descriptor
	layers  []digest.Digest
	sources map[string][]string // host name without port → repositories
	// Known only if the config is there.
	chains   []digest.Digest
	platform ocispec.Platform
}

// catalog finds manifests in the content of a namespace.
type catalog struct {
	store content.Store
	// Documents never change, so what was read of them is kept, by digest.
	manifests *lru.Cache[digest.Digest, *ocispec.Manifest]
	configs   *lru.Cache[digest.Digest, *config]
}

type config struct {
	chains   []digest.Digest
	platform ocispec.Platform
}

const (
	// remembered is how many documents are kept: some hundred bytes each.
	remembered = 1024
	// maxDocument is the size of the largest manifest or config that is read.
	maxDocument = 8 << 20
	// labelConfig is the label by which a manifest keeps its config. Whoever pulls
	// sets it, or the garbage collector takes the config.
	labelConfig = "containerd.io/gc.ref.content.config"
)

func newCatalog(cs content.Store) catalog {
	manifests, err := lru.New[digest.Digest, *ocispec.Manifest](remembered)
	if err != nil {
		panic(err) // of a size that is not positive
	}
	configs, err := lru.New[digest.Digest, *config](remembered)
	if err != nil {
		panic(err)
	}
	return catalog{cs, manifests, configs}
}

// byChain returns the newest manifest one of whose chains is the given one.
func (c catalog) byChain(ctx context.Context, chain digest.Digest) (*manifest, error) {
	return c.newest(ctx, func(m *ocispec.Manifest) bool {
		conf, err := c.config(ctx, m)
		return err == nil && slices.Contains(conf.chains, chain)
	})
}

// byLayer returns the newest manifest with a layer.
func (c catalog) byLayer(ctx context.Context, layer digest.Digest) (*manifest, error) {
	return c.newest(ctx, func(m *ocispec.Manifest) bool {
		return slices.ContainsFunc(m.Layers, func(l ocispec.Descriptor) bool { return l.Digest == layer })
	})
}

// newest returns the manifest that was written or labelled last of those that
// match: the one that is being pulled.
func (c catalog) newest(ctx context.Context, match func(*ocispec.Manifest) bool) (*manifest, error) {
	var (
		found *manifest
		at    time.Time
	)
	err := c.store.Walk(ctx, func(info content.Info) error {
		if !info.UpdatedAt.After(at) || info.Size > maxDocument {
			return nil
		}
		m, err := c.manifest(ctx, info)
		if err != nil || !match(m) {
			return nil // something else that keeps a config
		}
		found, at = describe(info, m), info.UpdatedAt
		if conf, err := c.config(ctx, m); err == nil {
			found.chains, found.platform = conf.chains, conf.platform
		}
		return nil
	}, fmt.Sprintf("labels.%q", labelConfig))
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("manifest: %w", errdefs.ErrNotFound)
	}
	return found, nil
}

func describe(info content.Info, m *ocispec.Manifest) *manifest {
	out := &manifest{
		desc:    ocispec.Descriptor{MediaType: m.MediaType, Digest: info.Digest, Size: info.Size},
		sources: map[string][]string{}, platform: platforms.DefaultSpec(),
	}
	for _, l := range m.Layers {
		out.layers = append(out.layers, l.Digest)
	}
	for key, value := range info.Labels {
		if host, ok := strings.CutPrefix(key, labels.LabelDistributionSource+"."); ok && value != "" {
			out.sources[host] = strings.Split(value, ",")
		}
	}
	return out
}

func (c catalog) manifest(ctx context.Context, info content.Info) (*ocispec.Manifest, error) {
	if m, ok := c.manifests.Get(info.Digest); ok {
		return m, nil
	}
	var m ocispec.Manifest
	if err := c.read(ctx, ocispec.Descriptor{Digest: info.Digest, Size: info.Size}, &m); err != nil {
		return nil, err
	}
	if !images.IsConfigType(m.Config.MediaType) {
		return nil, fmt.Errorf("config of type %q: %w", m.Config.MediaType, errdefs.ErrInvalidArgument)
	}
	c.manifests.Add(info.Digest, &m)
	return &m, nil
}

func (c catalog) config(ctx context.Context, m *ocispec.Manifest) (*config, error) {
	if known, ok := c.configs.Get(m.Config.Digest); ok {
		return known, nil
	}
	if m.Config.Size > maxDocument {
		return nil, fmt.Errorf("config of %d bytes: %w", m.Config.Size, errdefs.ErrOutOfRange)
	}
	var image ocispec.Image
	if err := c.read(ctx, m.Config, &image); err != nil {
		return nil, err
	}
	conf := &config{identity.ChainIDs(image.RootFS.DiffIDs), platforms.Normalize(image.Platform)}
	c.configs.Add(m.Config.Digest, conf)
	return conf, nil
}

func (c catalog) read(ctx context.Context, desc ocispec.Descriptor, into any) error {
	b, err := content.ReadBlob(ctx, c.store, desc)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}
