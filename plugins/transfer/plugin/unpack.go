package plugin

import (
	"fmt"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// unpackPlatforms turns unpack_config into what the transfer service takes.
func unpackPlatforms(ic *plugin.InitContext, db *metadata.DB, c *Config) ([]unpack.Platform, error) {
	entries := c.UnpackConfiguration
	if entries == nil { // and not if it is set to nothing
		entries = defaultUnpack()
	}
	var out []unpack.Platform
	for _, entry := range entries {
		p, err := unpackPlatform(ic, db, entry, c.CheckPlatformSupported)
		if err != nil {
			return nil, err
		}
		if p != nil {
			out = append(out, *p)
		}
	}
	return out, nil
}

// unpackPlatform returns nil if the entry is optional and its plugins are not there.
func unpackPlatform(ic *plugin.InitContext, db *metadata.DB, entry Unpack, exact bool) (*unpack.Platform, error) {
	p, err := platforms.Parse(entry.Platform)
	if err != nil {
		return nil, fmt.Errorf("unpack_config: platform %q: %w", entry.Platform, err)
	}
	sn := db.Snapshotter(entry.Snapshotter)
	if sn == nil {
		if entry.Optional {
			return nil, nil
		}
		return nil, fmt.Errorf("snapshotter %q not found: %w", entry.Snapshotter, errdefs.ErrNotFound)
	}
	applier, err := applierFor(ic, entry.Differ, p)
	if err != nil {
		if entry.Optional {
			return nil, nil
		}
		return nil, err
	}
	out := &unpack.Platform{
		Platform:       platforms.OnlyOS(p),
		SnapshotterKey: entry.Snapshotter,
		Snapshotter:    sn,
		Applier:        applier,
		ConfigType:     entry.ConfigType,
		LayerTypes:     entry.LayerTypes,
	}
	if exact {
		out.Platform = platforms.Only(p)
	}
	if registered := ic.Plugins().Get(plugins.SnapshotPlugin, entry.Snapshotter); registered != nil {
		out.SnapshotterExports = registered.Meta.Exports
		out.SnapshotterCapabilities = registered.Meta.Capabilities
	}
	return out, nil
}

// applierFor returns the diff plugin with the given ID or, if that is empty, one
// that supports the platform, containerd's default if that is among them.
func applierFor(ic *plugin.InitContext, id string, p ocispec.Platform) (diff.Applier, error) {
	if id != "" {
		instance, err := ic.GetByID(plugins.DiffPlugin, id)
		if err != nil {
			return nil, fmt.Errorf("diff plugin %q: %w", id, err)
		}
		return instance.(diff.Applier), nil
	}
	var (
		applier diff.Applier
		chosen  string
	)
	for _, candidate := range ic.GetAll() {
		if candidate.Registration.Type != plugins.DiffPlugin || !supports(candidate, p) {
			continue
		}
		if applier != nil {
			skipped := candidate.Registration.ID
			if skipped == defaults.DefaultDiffer {
				skipped = chosen
			}
			log.G(ic.Context).Warnf("several differs match the platform, skipping %q: choose with the key differ", skipped)
			if skipped == candidate.Registration.ID {
				continue
			}
		}
		instance, err := candidate.Instance()
		if err != nil {
			if plugin.IsSkipPlugin(err) {
				continue
			}
			return nil, fmt.Errorf("diff plugin %q: %w", candidate.Registration.ID, err)
		}
		applier, chosen = instance.(diff.Applier), candidate.Registration.ID
	}
	if applier == nil {
		return nil, fmt.Errorf("no matching diff plugins: %w", errdefs.ErrNotFound)
	}
	return applier, nil
}

// supports matches by the differ's platforms: one for linux/amd64 must not be
// taken for linux(+erofs)/amd64.
func supports(differ *plugin.Plugin, p ocispec.Platform) bool {
	for _, own := range differ.Meta.Platforms {
		if platforms.Only(own).Match(p) {
			return true
		}
	}
	return false
}
