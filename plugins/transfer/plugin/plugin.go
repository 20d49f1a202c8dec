// Package plugin registers the transfer service in the place of containerd's own:
// under its type and ID, with its configuration. Two of the type must not load.
package plugin

import (
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/transfer/local"
	"github.com/containerd/containerd/v2/pkg/imageverifier"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	ours "github.com/starlight-delta/starlight/plugins"
	"github.com/starlight-delta/starlight/plugins/internal/keylock"
	"github.com/starlight-delta/starlight/plugins/transfer"

	// The types of sources and destinations register themselves.
	_ "github.com/containerd/containerd/v2/core/transfer/archive"
	_ "github.com/containerd/containerd/v2/core/transfer/image"
	_ "github.com/containerd/containerd/v2/core/transfer/registry"
)

func init() {
	registry.Register(&plugin.Registration{
		Type: plugins.TransferPlugin,
		ID:   "local",
		Requires: []plugin.Type{
			ours.EnginePlugin,
			plugins.ContentPlugin,
			plugins.LeasePlugin,
			plugins.MetadataPlugin,
			plugins.DiffPlugin,
			plugins.ImageVerifierPlugin,
			plugins.SnapshotPlugin,
		},
		Config: Default(),
		InitFn: initialize,
	})
}

func initialize(ic *plugin.InitContext) (any, error) {
	config, ok := ic.Config.(*Config)
	if !ok {
		return nil, fmt.Errorf("configuration of type %T: %w", ic.Config, errdefs.ErrInvalidArgument)
	}
	m, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, err
	}
	db := m.(*metadata.DB)
	lc, err := localConfig(ic, db, config)
	if err != nil {
		return nil, err
	}
	c := transfer.Config{
		Inner:   local.NewTransferService(db.ContentStore(), metadata.NewImageStore(db), lc),
		Content: db.ContentStore(),
	}
	if db.Snapshotter(ours.SnapshotterName) == nil {
		log.G(ic.Context).Warn("no snapshotter starlight: no pull is a delta pull")
		return transfer.New(c), nil
	}
	if e, err := ic.GetByID(ours.EnginePlugin, ours.EngineID); err == nil {
		c.Engine = e.(transfer.Engine)
	}
	if cs, err := ic.GetSingle(plugins.ContentPlugin); err == nil {
		c.Holder, _ = cs.(transfer.Holder)
	}
	p := ic.Plugins().Get(ours.EnginePlugin, ours.EngineID)
	if p != nil && p.Meta.Exports[ours.ExportDefaultSnapshotter] == "true" {
		if c.Defaults, err = transfer.NewNamespaceDefaults(ic.Context, db); err != nil {
			return nil, err
		}
	}
	return transfer.New(c), nil
}

// localConfig is that of containerd's transfer service.
func localConfig(ic *plugin.InitContext, db *metadata.DB, c *Config) (local.TransferConfig, error) {
	lc := local.TransferConfig{
		MaxConcurrentDownloads:      c.MaxConcurrentDownloads,
		ConcurrentLayerFetchBuffer:  c.ConcurrentLayerFetchBuffer,
		MaxConcurrentUploadedLayers: c.MaxConcurrentUploadedLayers,
		MaxConcurrentUnpacks:        c.MaxConcurrentUnpacks,
		RegistryConfigPath:          c.RegistryConfigPath,
		DuplicationSuppressor:       &keylock.Locker{},
	}
	l, err := ic.GetSingle(plugins.LeasePlugin)
	if err != nil {
		return lc, err
	}
	lc.Leases = l.(leases.Manager)
	verifiers, err := ic.GetByType(plugins.ImageVerifierPlugin)
	if err != nil && !errors.Is(err, plugin.ErrPluginNotFound) {
		return lc, err
	}
	if len(verifiers) > 0 {
		lc.Verifiers = map[string]imageverifier.ImageVerifier{}
		for name, v := range verifiers {
			lc.Verifiers[name] = v.(imageverifier.ImageVerifier)
		}
	}
	lc.UnpackPlatforms, err = unpackPlatforms(ic, db, c)
	return lc, err
}
