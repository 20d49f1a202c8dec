// Package plugin registers the engine with containerd. It requires no other
// plugin: the content plugin, on which metadata depends, depends on it.
package plugin

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/prometheus/client_golang/prometheus"

	starlight "github.com/starlight-delta/starlight/plugins"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
)

func init() {
	registry.Register(&plugin.Registration{
		Type:   starlight.EnginePlugin,
		ID:     starlight.EngineID,
		Config: Default(),
		InitFn: initialize,
	})
}

// initialize opens the engine. Where it fails the plugin is the only one that
// does: the others work as their stock counterparts without an engine.
func initialize(ic *plugin.InitContext) (any, error) {
	config, ok := ic.Config.(*Config)
	if !ok {
		return nil, fmt.Errorf("configuration of type %T: %w", ic.Config, errdefs.ErrInvalidArgument)
	}
	c, err := config.engine(siblingRoot(ic.Properties[plugins.PropertyRootDir]))
	// Exported even if the engine does not start: the snapshotter keeps its
	// directory and stays the default that it was.
	ic.Meta.Exports[starlight.ExportRoot] = c.Root
	ic.Meta.Exports[starlight.ExportDefaultSnapshotter] = strconv.FormatBool(config.DefaultSnapshotter)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	for _, address := range config.cleartext() {
		log.G(ic.Context).WithField("proxy", address).
			Warn("tokens, and credentials of private registries, are sent to this proxy unencrypted: use https where they matter")
	}
	e, err := engine.Open(ic.Context, c)
	if errdefs.IsNotImplemented(err) {
		log.G(ic.Context).WithError(err).Warn("this kernel cannot run lazy images: everything is pulled as by stock containerd")
		return nil, fmt.Errorf("%w: %w", err, plugin.ErrSkipPlugin)
	}
	if err != nil {
		return nil, err
	}
	// What containerd's metrics server serves.
	if err := prometheus.Register(e.Metrics()); err != nil {
		return nil, errors.Join(fmt.Errorf("register metrics: %w", err), e.Close())
	}
	return e, nil
}

// siblingRoot turns the directory of this plugin into that of the snapshotter.
func siblingRoot(own string) string {
	return filepath.Join(filepath.Dir(own), string(plugins.SnapshotPlugin)+"."+starlight.SnapshotterName)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
