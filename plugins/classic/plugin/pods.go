package plugin

import (
	"context"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"

	ours "github.com/starlight-delta/starlight/plugins"
)

// pods reads the labels of pods. CRI gives those of a pod to its sandbox, and none to
// the snapshots of its containers.
type pods struct {
	containers containers.Store
	sandboxes  sandbox.Store
}

// Optimizer implements starlight.Containers.
func (p pods) Optimizer(ctx context.Context, id string) string {
	c, err := p.containers.Get(ctx, id)
	if err != nil || c.SandboxID == "" {
		return ""
	}
	s, err := p.sandboxes.Get(ctx, c.SandboxID)
	if err != nil {
		return ""
	}
	return s.Labels[ours.LabelPodOptimizer]
}
