// Package virtual records layers in a namespace of containerd's metadata without
// their bytes. The content store below must know them as virtual blobs.
package virtual

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layer is a layer as the registry has it, and what it is uncompressed.
type Layer struct {
	ocispec.Descriptor
	DiffID digest.Digest
}

// Layers puts the layers of an image together with their diff IDs.
func Layers(descs []ocispec.Descriptor, diffIDs []digest.Digest) []Layer {
	out := make([]Layer, len(descs))
	for i, d := range descs {
		out[i] = Layer{d, diffIDs[i]}
	}
	return out
}

// Record commits layers in the namespace and under the lease of ctx, as fetched
// from the repository of ref. It fails only if ctx has ended: an image runs without
// its layers being recorded, but is not complete for "image check" and "export".
// each, if not nil, is called before each layer.
func Record(ctx context.Context, cs content.Store, ref string, layers []Layer, each func(ocispec.Descriptor)) error {
	label, err := docker.AppendDistributionSourceLabel(cs, ref)
	if err != nil {
		return err
	}
	for _, layer := range layers {
		if each != nil {
			each(layer.Descriptor)
		}
		err := commit(ctx, cs, layer)
		if err == nil {
			_, err = label(ctx, layer.Descriptor)
		}
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return err
		}
		log.G(ctx).WithError(err).WithFields(log.Fields{"ref": ref, "digest": layer.Digest}).Warn("failed to record a layer")
	}
	return nil
}

// commit takes the way on which metadata shares blobs between namespaces, and sets
// the label that unpacking would leave: push, convert and commit of clients read the
// whole layer to find it out otherwise.
func commit(ctx context.Context, cs content.Store, layer Layer) (err error) {
	desc := layer.Descriptor
	w, err := content.OpenWriter(ctx, cs, content.WithRef(remotes.MakeRefKey(ctx, desc)), content.WithDescriptor(desc))
	if err != nil {
		if errdefs.IsAlreadyExists(err) {
			return nil
		}
		return err
	}
	defer func() {
		if cerr := w.Close(); err == nil {
			err = cerr
		}
	}()
	st, err := w.Status()
	if err != nil {
		return err
	}
	if st.Offset != desc.Size {
		return fmt.Errorf("the content store does not share %s between namespaces: %w", desc.Digest, errdefs.ErrFailedPrecondition)
	}
	uncompressed := content.WithLabels(map[string]string{labels.LabelUncompressed: layer.DiffID.String()})
	if err := w.Commit(ctx, desc.Size, desc.Digest, uncompressed); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return nil
}
