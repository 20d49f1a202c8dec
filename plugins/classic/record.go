package classic

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/plugins"
	"github.com/starlight-delta/starlight/plugins/internal/virtual"
)

// record records the layers of the images that end with a chain in the namespace of
// ctx, if the namespace has their manifest: the engine knew them, so nobody asked.
func (p *Puller) record(ctx context.Context, chain digest.Digest) {
	for _, k := range p.config.Engine.KnownByChain(chain) {
		if _, err := p.config.Content.Info(ctx, k.Manifest.Digest); err != nil {
			continue
		}
		missing := slices.DeleteFunc(virtual.Layers(k.Layers, k.DiffIDs), func(l virtual.Layer) bool {
			_, err := p.config.Content.Info(ctx, l.Digest)
			return err == nil
		})
		if len(missing) == 0 {
			continue
		}
		release := p.config.Holder.Hold(layersOf(k.Layers)...)
		err := virtual.Record(ctx, p.config.Content, k.Name+"@"+k.Manifest.Digest.String(), missing, nil)
		release()
		if err != nil {
			log.G(ctx).WithError(err).WithField("ref", k.Name).Warn("failed to record layers")
		}
	}
}

// prepare makes the snapshots of lazy layers known in the namespace of ctx, as an
// unpacker does: a client that looks before it unpacks finds them.
func (p *Puller) prepare(ctx context.Context, diffIDs []digest.Digest) error {
	parent := ""
	for i, chain := range identity.ChainIDs(slices.Clone(diffIDs)) {
		key := fmt.Sprintf(snapshots.UnpackKeyFormat, rand.Text(), chain)
		_, err := p.config.Snapshotter.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{
			plugins.LabelTargetSnapshot:   chain.String(),
			snapshots.LabelSnapshotDiffID: diffIDs[i].String(),
		}))
		if err == nil {
			err = p.config.Snapshotter.Remove(ctx, key)
			if err == nil {
				err = fmt.Errorf("chain %s: %w", chain, errdefs.ErrNotFound)
			}
			return err
		}
		if !errdefs.IsAlreadyExists(err) {
			return err
		}
		parent = chain.String()
	}
	return nil
}

// here tells whether the namespace has the bytes of all layers of m.
func (p *Puller) here(ctx context.Context, m *manifest) bool {
	for _, layer := range m.layers {
		if _, ok := p.config.Engine.Virtual(layer); ok {
			return false
		}
		if _, err := p.config.Content.Info(ctx, layer); err != nil {
			return false
		}
	}
	return true
}

func layersOf(descs []ocispec.Descriptor) []digest.Digest {
	out := make([]digest.Digest, len(descs))
	for i, d := range descs {
		out[i] = d.Digest
	}
	return out
}
