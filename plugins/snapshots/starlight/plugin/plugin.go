// Package plugin registers the snapshotter with containerd.
package plugin

import (
	"fmt"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	ours "github.com/starlight-delta/starlight/plugins"
	"github.com/starlight-delta/starlight/plugins/snapshots/starlight"
)

// Capabilities and exports, as containerd's clients know them.
const (
	capRemapIDs     = "remap-ids"
	capOnlyRemapIDs = "only-remap-ids"

	// exportAnnotations makes unpackers label what they prepare with the image.
	exportAnnotations = "enable_remote_snapshot_annotations"
)

// Config is the section [plugins.'io.containerd.snapshotter.v1.starlight']: that
// of overlayfs without root_path, which is a key of the engine.
type Config struct {
	UpperdirLabel bool `toml:"upperdir_label"`
	SyncRemove    bool `toml:"sync_remove"`

	// SlowChown allows a recursive chown where ID-mapped mounts are not available.
	SlowChown bool `toml:"slow_chown"`

	// MountOptions of overlay mounts, not of bind mounts.
	MountOptions []string `toml:"mount_options"`
}

func init() {
	registry.Register(&plugin.Registration{
		Type:     plugins.SnapshotPlugin,
		ID:       ours.SnapshotterName,
		Config:   &Config{},
		Requires: []plugin.Type{ours.EnginePlugin},
		InitFn:   initialize,
	})
}

func initialize(ic *plugin.InitContext) (any, error) {
	config, ok := ic.Config.(*Config)
	if !ok {
		return nil, fmt.Errorf("configuration of type %T: %w", ic.Config, errdefs.ErrInvalidArgument)
	}
	ic.Meta.Platforms = append(ic.Meta.Platforms, platforms.DefaultSpec())
	c := starlight.Config{
		Root:          ic.Properties[plugins.PropertyRootDir],
		UpperdirLabel: config.UpperdirLabel,
		AsyncRemove:   !config.SyncRemove,
		MountOptions:  config.MountOptions,
	}
	if p := ic.Plugins().Get(ours.EnginePlugin, ours.EngineID); p != nil && p.Meta.Exports[ours.ExportRoot] != "" {
		c.Root = p.Meta.Exports[ours.ExportRoot]
	}
	ic.Meta.Exports[plugins.SnapshotterRootDir] = c.Root
	ic.Meta.Exports[exportAnnotations] = "true"

	if ok, err := overlayutils.SupportsIDMappedMounts(); err == nil && ok {
		c.RemapIDs = true
		ic.Meta.Capabilities = append(ic.Meta.Capabilities, capRemapIDs)
	}
	if !config.SlowChown {
		ic.Meta.Capabilities = append(ic.Meta.Capabilities, capOnlyRemapIDs)
	}
	// Not snapshots.RebaseCap: with it, unpackers prepare layers without their
	// parents, and only for the name "overlayfs" do they unpack whiteouts rightly then.

	// Without an engine e is nil, and so every snapshot a plain one.
	var e starlight.Engine
	instance, err := ic.GetByID(ours.EnginePlugin, ours.EngineID)
	if err != nil {
		log.G(ic.Context).WithError(err).Warn("no engine: starlight is a plain overlay snapshotter")
	} else {
		e = instance.(starlight.Engine)
	}
	return starlight.New(c, e)
}
