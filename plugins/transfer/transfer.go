// Package transfer makes pulls into the starlight snapshotter delta pulls. It
// decorates containerd's own transfer service: where an image is to be unpacked
// into starlight, the source of the transfer is replaced by one that answers from
// what the engine got, and all else (leases, verifiers, platforms, labels,
// progress, the image store) stays containerd's.
//
// Whenever the engine cannot, the transfer goes on with the source that the
// client gave, as if Starlight were not there.
package transfer

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/plugins"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
)

// Engine is what a transfer needs of the engine.
type Engine interface {
	Pull(ctx context.Context, r engine.PullRequest) (*engine.Pull, error)
	Plain(namespace, ref string, why error)
}

// Holder keeps virtual blobs from the garbage collector until they are recorded.
type Holder interface {
	Hold(blobs ...digest.Digest) (release func())
}

// Defaults makes starlight the snapshotter of a namespace that names none.
type Defaults interface {
	SetDefault(ctx context.Context, namespace string) error
}

// Config of a Transferrer.
type Config struct {
	// Inner does the transfers.
	Inner transfer.Transferrer
	// Content is the store as clients see it, with namespaces and leases.
	Content content.Store
	// Engine, if nil, accelerates nothing.
	Engine Engine
	// Holder may be nil.
	Holder Holder
	// Defaults, if not nil, says that clients without a snapshotter get starlight.
	Defaults Defaults
}

// Transferrer implements transfer.Transferrer.
type Transferrer struct{ config Config }

var _ transfer.Transferrer = (*Transferrer)(nil)

// New returns a Transferrer around c.Inner.
func New(c Config) *Transferrer { return &Transferrer{config: c} }

// Transfer is a delta pull if it can be, and what containerd does otherwise.
func (t *Transferrer) Transfer(ctx context.Context, src, dst any, opts ...transfer.Opt) error {
	if t.config.Defaults != nil {
		dst = t.withDefault(ctx, src, dst)
	}
	ctx = engine.WithAsked(ctx)
	if f, ok := src.(namedFetcher); ok {
		ctx = engine.WithRegistry(ctx, fetchWith(f))
	}
	fetcher, wanted := t.ours(src, dst)
	if len(wanted) == 0 {
		return t.config.Inner.Transfer(ctx, src, dst, opts...)
	}
	var topts transfer.Config
	for _, opt := range opts {
		opt(&topts)
	}
	s := newSource(ctx, t.config, fetcher, wanted, topts.Progress)
	defer s.close()
	err := t.config.Inner.Transfer(ctx, s, dst, opts...)
	if err == nil {
		s.complete(ctx)
	} else if s.began() && ctx.Err() == nil {
		// The client's own source gets its chance, whatever it was.
		s.plain(ctx, err)
		err = t.config.Inner.Transfer(ctx, s, dst, opts...)
	}
	s.logPlain(ctx, err)
	return err
}

// ours tells for which platforms the engine is to pull this image, if for any.
func (t *Transferrer) ours(src, dst any) (_ namedFetcher, wanted []ocispec.Platform) {
	if t.config.Engine == nil {
		return nil, nil
	}
	f, ok := src.(namedFetcher)
	if !ok {
		return nil, nil
	}
	u, ok := dst.(transfer.ImageUnpacker)
	if !ok {
		return nil, nil
	}
	seen := map[string]bool{}
	for _, c := range u.UnpackPlatforms() {
		if name := platforms.Format(c.Platform); c.Snapshotter == plugins.SnapshotterName && !seen[name] {
			seen[name] = true
			wanted = append(wanted, c.Platform)
		}
	}
	return f, wanted
}

// withDefault gives dst a snapshotter if the client named none.
func (t *Transferrer) withDefault(ctx context.Context, src, dst any) any {
	switch src.(type) {
	case transfer.ImageFetcher, transfer.ImageImporter:
	default:
		return dst
	}
	storer, ok := dst.(transfer.ImageStorer)
	if !ok {
		return dst
	}
	if ns, ok := namespaces.Namespace(ctx); ok {
		// Without the label a container needs --snapshotter, and no more than that.
		if err := t.config.Defaults.SetDefault(ctx, ns); err != nil {
			log.G(ctx).WithError(err).Warn("failed to make starlight the default snapshotter of the namespace")
		}
	}
	u, ok := dst.(transfer.ImageUnpacker)
	if !ok {
		return dst
	}
	named := false
	unpacks := u.UnpackPlatforms()
	out := make([]transfer.UnpackConfiguration, len(unpacks))
	for i, c := range unpacks {
		if c.Snapshotter == "" {
			c.Snapshotter, named = plugins.SnapshotterName, true
		}
		out[i] = c
	}
	if !named {
		return dst
	}
	return &defaultStore{ImageStorer: storer, unpacks: out}
}
