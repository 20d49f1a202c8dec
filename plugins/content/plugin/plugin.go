// Package plugin registers the content store in the place of containerd's own:
// under its type and ID, so in its directory, and like it without configuration.
package plugin

import (
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	starlight "github.com/starlight-delta/starlight/plugins"
	"github.com/starlight-delta/starlight/plugins/content"
)

func init() {
	registry.Register(&plugin.Registration{
		Type:     plugins.ContentPlugin,
		ID:       "content",
		Requires: []plugin.Type{starlight.EnginePlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			root := ic.Properties[plugins.PropertyRootDir]
			ic.Meta.Exports["root"] = root
			inner, err := local.NewStore(root)
			if err != nil {
				return nil, err
			}
			e, err := ic.GetByID(starlight.EnginePlugin, starlight.EngineID)
			if err != nil {
				log.G(ic.Context).WithError(err).Warn("no engine: the content store has no virtual blobs")
				return inner, nil
			}
			return content.New(ic.Context, inner, e.(content.Engine))
		},
	})
}
