// Package plugin registers the Starlight service with containerd's gRPC server.
package plugin

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	starlight "github.com/starlight-delta/starlight/plugins"
	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
	config "github.com/starlight-delta/starlight/plugins/engine/plugin"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
	service "github.com/starlight-delta/starlight/plugins/services/starlight"
)

func init() {
	registry.Register(&plugin.Registration{
		Type:     plugins.GRPCPlugin,
		ID:       starlight.ServiceID,
		Requires: []plugin.Type{starlight.EnginePlugin, plugins.MetadataPlugin},
		InitFn:   initService,
	})
}

func initService(ic *plugin.InitContext) (any, error) {
	p, err := ic.GetByID(starlight.EnginePlugin, starlight.EngineID)
	if err != nil {
		return nil, err
	}
	e, ok := p.(service.Engine)
	if !ok {
		return nil, fmt.Errorf("engine is a %T: %w", p, errdefs.ErrInternal)
	}
	m, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, err
	}
	db, ok := m.(*metadata.DB)
	if !ok {
		return nil, fmt.Errorf("metadata is a %T: %w", m, errdefs.ErrInternal)
	}
	return service.New(e, imageStore{metadata.NewImageStore(db), db}, validate), nil
}

// validate checks a proxy as if it were in the configuration.
func validate(r *api.AddProxyRequest) (engine.Proxy, error) {
	p := config.Proxy{
		Address: r.GetAddress(), Registries: r.GetRegistries(),
		CA: r.GetCa(), Cert: r.GetCert(), Key: r.GetKey(), TokenFile: r.GetTokenFile(),
	}
	return p.Engine()
}

// imageStore is containerd's, across namespaces.
type imageStore struct {
	images.Store
	db *metadata.DB
}

// Collect implements service.Images.
func (s imageStore) Collect(ctx context.Context) error {
	_, err := s.db.GarbageCollect(ctx)
	return err
}

// Has implements service.Images.
func (s imageStore) Has(ctx context.Context, namespace, name string) (bool, error) {
	_, err := s.Get(namespaces.WithNamespace(ctx, namespace), name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// Named implements service.Images. An index is read to see what it lists.
func (s imageStore) Named(ctx context.Context, namespace string, manifest digest.Digest) ([]string, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, img := range all {
		if img.Target.Digest == manifest || s.lists(ctx, img.Target, manifest) {
			names = append(names, img.Name)
		}
	}
	return names, nil
}

func (s imageStore) lists(ctx context.Context, index ocispec.Descriptor, manifest digest.Digest) bool {
	if !images.IsIndexType(index.MediaType) {
		return false
	}
	children, err := images.Children(ctx, s.db.ContentStore(), index)
	return err == nil && slices.ContainsFunc(children, func(c ocispec.Descriptor) bool { return c.Digest == manifest })
}
