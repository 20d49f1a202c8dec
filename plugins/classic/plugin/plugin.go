// Package plugin lets clients that do not use the transfer service have delta
// pulls. It loads after all that it connects.
package plugin

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	bolt "go.etcd.io/bbolt"

	ours "github.com/starlight-delta/starlight/plugins"
	"github.com/starlight-delta/starlight/plugins/classic"
	"github.com/starlight-delta/starlight/plugins/content"
	"github.com/starlight-delta/starlight/plugins/snapshots/starlight"
)

// patience is that of classic.Config: longer than a proxy takes for an image that
// it knows, over any link; what it has to read first is left to the registry.
const patience = 20 * time.Second

func init() {
	registry.Register(&plugin.Registration{
		Type: plugins.InternalPlugin,
		ID:   ours.ClassicID,
		Requires: []plugin.Type{
			ours.EnginePlugin,
			plugins.ContentPlugin,
			plugins.SnapshotPlugin,
			plugins.MetadataPlugin,
		},
		InitFn: initialize,
	})
}

func initialize(ic *plugin.InitContext) (any, error) {
	e, err := ic.GetByID(ours.EnginePlugin, ours.EngineID)
	if err != nil {
		log.G(ic.Context).WithError(err).Debug("no engine: clients without transfer are not accelerated")
		return nil, plugin.ErrSkipPlugin
	}
	m, err := ic.GetSingle(plugins.MetadataPlugin)
	if err != nil {
		return nil, err
	}
	c, err := ic.GetSingle(plugins.ContentPlugin)
	if err != nil {
		return nil, err
	}
	s, err := ic.GetByID(plugins.SnapshotPlugin, ours.SnapshotterName)
	if err != nil {
		log.G(ic.Context).WithError(err).Debug("no snapshotter: clients without transfer are not accelerated")
		return nil, plugin.ErrSkipPlugin
	}
	db, store, snapshotter := m.(*metadata.DB), c.(*content.Store), s.(*starlight.Snapshotter)
	p := classic.New(classic.Config{
		Engine:      e.(classic.Engine),
		Content:     db.ContentStore(),
		Snapshotter: db.Snapshotter(ours.SnapshotterName),
		Holder:      store,
		Default:     func(ctx context.Context, ns string) (bool, error) { return isDefault(ctx, db, ns) },
		Patience:    patience,
	})
	store.SetPuller(p)
	snapshotter.SetPuller(p)
	snapshotter.SetContainers(labels{metadata.NewContainerStore(db), metadata.NewSandboxStore(db), metadata.NewImageStore(db)})
	return p, nil
}

// isDefault reads the label of a namespace by which clients choose a snapshotter.
func isDefault(ctx context.Context, db *metadata.DB, ns string) (is bool, err error) {
	err = db.View(func(tx *bolt.Tx) error {
		labels, err := metadata.NewNamespaceStore(tx).Labels(ctx, ns)
		is = labels[defaults.DefaultSnapshotterNSLabel] == ours.SnapshotterName
		return err
	})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return is, err
}
