package starlight

import (
	"fmt"
	"maps"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/plugins"
)

// LabelChain decides what a snapshot contains, and labels of snapshots come from
// annotations of images, which anybody may write. So it is taken from nobody.

// chainOf tells of which lazy chain a snapshot is, or "".
func chainOf(info snapshots.Info) digest.Digest {
	return digest.Digest(info.Labels[plugins.LabelChain])
}

// withoutChain is an option, to be given after all others, that takes the label away.
func withoutChain(info *snapshots.Info) error {
	delete(info.Labels, plugins.LabelChain)
	return nil
}

// withChain is the option that sets the label.
func withChain(chain digest.Digest) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{plugins.LabelChain: chain.String()})
}

// keepChain is info as given by a client, with the label as it was.
func keepChain(info, old snapshots.Info) snapshots.Info {
	labels := maps.Clone(info.Labels)
	delete(labels, plugins.LabelChain)
	if chain := chainOf(old); chain != "" {
		if labels == nil {
			labels = map[string]string{}
		}
		labels[plugins.LabelChain] = chain.String()
	}
	info.Labels = labels
	return info
}

func noEngine(chain digest.Digest) error {
	return fmt.Errorf("chain %s is lazy and the engine is not running: %w", chain, errdefs.ErrUnavailable)
}
