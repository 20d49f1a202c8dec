package server

import (
	"context"
	"io"
	"log/slog"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/internal/ticket"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Registry asks registries on behalf of clients. *registry.Client is one.
type Registry interface {
	Image(ctx context.Context, ref string, platform ocispec.Platform, creds *wire.Credentials) (*registry.Image, error)
	Known(ctx context.Context, ref string, platform ocispec.Platform) (*registry.Image, error)
	Blob(ctx context.Context, ref string, desc ocispec.Descriptor, creds *wire.Credentials) (io.ReadCloser, error)
}

// Ingester makes layers known. *ingest.Ingester is one.
type Ingester interface {
	Ready(ctx context.Context, img *registry.Image) ([]*meta.Layer, error)
	Image(ctx context.Context, img *registry.Image, creds *wire.Credentials, progress func(done, total int64)) ([]*meta.Layer, error)
	TOC(ctx context.Context, l *meta.Layer) ([]byte, error)
}

// Meta is what the server needs of the database. meta.Store is one.
type Meta interface {
	Layer(ctx context.Context, diffID toc.Digest) (*meta.Layer, error)
	Order(ctx context.Context, manifest toc.Digest, kind string) ([]byte, error)
	PutOrder(ctx context.Context, manifest toc.Digest, kind string, order []byte) error
	PutTraces(ctx context.Context, manifest toc.Digest, traces []meta.Trace, limits meta.TraceLimits) error
	Traces(ctx context.Context, manifest toc.Digest) ([]meta.Trace, error)
	PutProfile(ctx context.Context, repo string, p *meta.Profile, keep int) error
	Profiles(ctx context.Context, repo string) ([]meta.Profile, error)
	Lock(ctx context.Context, name string) (unlock func(), err error)
	Ping(ctx context.Context) error
}

// Patches makes patches ahead of need. *patches.Cache is one.
type Patches interface {
	delta.Patches
	// Seen is told where a tag leads for a platform. The image is ingested.
	Seen(ctx context.Context, repo, tag, platform string, manifest toc.Digest) error
}

// Retention keeps layers that are of use. *retention.Keeper is one.
type Retention interface {
	// Hold notes that layers are of use until release is called. Some may not be known.
	Hold(layers []toc.Digest) (release func())
}

// Config of a Server.
type Config struct {
	Registry Registry
	Ingester Ingester
	Meta     Meta
	Blobs    blob.Store
	Patches  Patches
	// Retention is told which layers are of use.
	Retention Retention
	// Fresh compresses images well in the background, for pulls by workers that
	// have nothing alike. It takes about as much space as the packs.
	Fresh   bool
	Metrics *Metrics
	Log     *slog.Logger
	// Version of the binary, for ping.
	Version string
	// Registries with a port, for ping.
	Registries []string
	// Tokens, if there are any, are what workers must show as bearer token.
	Tokens []string
	// Tickets let workers go on without credentials; nil: they cannot.
	Tickets *ticket.Issuer
	// ClientCert demands a verified client certificate of workers.
	ClientCert bool
	Limits     Limits
}

// Limits bound what clients can make proxyd hold.
type Limits struct {
	// Requests is how many requests of workers are looked at at the same time.
	Requests int
	// Bundles is how many of them may be sent data; each costs some MiB.
	Bundles int
	// Waiting is how many may wait for an ingest, IngestWait how long.
	Waiting    int
	IngestWait time.Duration
	// Stall is how long a client may take nothing of what is sent to it.
	Stall time.Duration
	// Body is how long a client may take to send its request.
	Body time.Duration
	// Plan is how long proxyd may take from the end of the request to the
	// header, ingest apart.
	Plan time.Duration
	// CacheBytes bounds what is kept in memory between requests.
	CacheBytes int64
}

// DefaultLimits returns the limits that keep proxyd below 200 MB with 10 large
// images under way.
func DefaultLimits() Limits {
	return Limits{
		Requests:   256,
		Bundles:    64,
		Waiting:    64,
		IngestWait: 5 * time.Minute,
		Stall:      time.Minute,
		Body:       30 * time.Second,
		Plan:       time.Minute,
		CacheBytes: 64 << 20,
	}
}
