// Package plugin registers the Starlight service with containerd's gRPC server.
package plugin

import (
	"fmt"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	starlight "github.com/starlight-delta/starlight/plugins"
	service "github.com/starlight-delta/starlight/plugins/services/starlight"
)

func init() {
	registry.Register(&plugin.Registration{
		Type:     plugins.GRPCPlugin,
		ID:       starlight.ServiceID,
		Requires: []plugin.Type{starlight.EnginePlugin},
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
	return service.New(e), nil
}
