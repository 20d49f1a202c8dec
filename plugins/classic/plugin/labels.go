package plugin

import (
	"context"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/sandbox"

	ours "github.com/starlight-delta/starlight/plugins"
)

// labels reads those of the pod and of the image of a container. CRI gives labels of a
// pod to its sandbox, and none to the snapshots of its containers.
type labels struct {
	containers containers.Store
	sandboxes  sandbox.Store
	images     images.Store
}

// Optimizer implements starlight.Containers.
func (l labels) Optimizer(ctx context.Context, id string) string {
	c, err := l.containers.Get(ctx, id)
	if err != nil {
		return ""
	}
	if c.SandboxID != "" {
		if s, err := l.sandboxes.Get(ctx, c.SandboxID); err == nil && s.Labels[ours.LabelOptimizerOf] != "" {
			return s.Labels[ours.LabelOptimizerOf]
		}
	}
	i, err := l.images.Get(ctx, c.Image)
	if err != nil {
		return ""
	}
	return i.Labels[ours.LabelOptimizerOf]
}
