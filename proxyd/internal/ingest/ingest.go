package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	defaultParallel  = 4
	progressInterval = wire.ProgressInterval / 2
)

// Source is where layers come from. *registry.Client is one.
type Source interface {
	// Blob opens a blob. The reader gives an error instead of io.EOF if the size or
	// the digest of what it read are not those of desc.
	Blob(ctx context.Context, ref string, desc ocispec.Descriptor, creds *wire.Credentials) (io.ReadCloser, error)
	// HasBlob returns nil if creds may read a blob of the repository of ref.
	HasBlob(ctx context.Context, ref string, desc ocispec.Descriptor, creds *wire.Credentials) error
}

// Config of an Ingester.
type Config struct {
	Source Source
	Meta   meta.Store
	Blobs  blob.Store
	// Parallel is how many layers are ingested at a time; 0 means 4.
	Parallel int
}

// Ingester ingests images. It is safe for concurrent use.
type Ingester struct {
	cfg    Config
	layers *semaphore.Weighted // bounds the layers that are read at a time
	// detach returns a context that ends with the Ingester, not with its caller.
	detach func() context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // of flights

	mu      sync.Mutex // guards: flights, closed
	flights map[flightKey]*flight
	closed  bool
}

// New returns an Ingester. It must be closed.
func New(cfg Config) *Ingester {
	if cfg.Parallel <= 0 {
		cfg.Parallel = defaultParallel
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Ingester{
		cfg:     cfg,
		layers:  semaphore.NewWeighted(int64(cfg.Parallel)),
		detach:  func() context.Context { return ctx },
		cancel:  cancel,
		flights: make(map[flightKey]*flight),
	}
}

// Close ends what is under way and waits for it.
func (g *Ingester) Close() error {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	g.wg.Wait()
	return nil
}

// Ready returns the layers of the image, from the lowest to the top, if nothing is
// left to ingest, and nil if Image has to be called first.
func (g *Ingester) Ready(ctx context.Context, img *registry.Image) ([]*meta.Layer, error) {
	known, err := g.cfg.Meta.Image(ctx, img.Name, img.Manifest.Digest)
	if errors.Is(err, meta.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	layers := make([]*meta.Layer, 0, len(known.Layers))
	for _, l := range known.Layers {
		m, err := g.cfg.Meta.Layer(ctx, l.DiffID)
		if errors.Is(err, meta.ErrNotFound) {
			return nil, nil // deleted since
		}
		if err != nil {
			return nil, err
		}
		layers = append(layers, m)
	}
	return layers, nil
}

// flightKey names an ingest. Credentials are no part of it: who asks has been
// given the manifest of this repository by its registry.
type flightKey struct {
	repo     string
	manifest toc.Digest
}

// flight is an ingest under way.
type flight struct {
	progress progress
	done     chan struct{}
	err      error // set before done is closed
}

// Image ingests what is not there yet of an image, and returns its layers from
// the lowest to the top. If ctx ends, Image returns, but the ingest goes on for
// the next caller. progress, if not nil, is called from Image itself, at least
// once in wire.ProgressInterval, with the bytes of layers read from the registry.
func (g *Ingester) Image(ctx context.Context, img *registry.Image, creds *wire.Credentials, progress func(done, total int64)) ([]*meta.Layer, error) {
	layers, err := g.Ready(ctx, img)
	if layers != nil || err != nil {
		return layers, err
	}
	f, err := g.join(img, creds) //nolint:contextcheck // the ingest goes on for the next caller
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	for {
		select {
		case <-f.done:
			if f.err != nil {
				return nil, f.err
			}
			layers, err := g.Ready(ctx, img)
			if err == nil && layers == nil {
				err = fmt.Errorf("image %s@%s was deleted while it was ingested", img.Name, img.Manifest.Digest)
			}
			return layers, err
		case <-tick.C:
			if progress != nil {
				progress(f.progress.read.Load(), f.progress.total.Load())
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// join returns the flight of an image and starts it if there is none.
func (g *Ingester) join(img *registry.Image, creds *wire.Credentials) (*flight, error) {
	key := flightKey{img.Name, img.Manifest.Digest}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, &wire.Error{Code: wire.CodeBusy, Message: "proxyd is shutting down"}
	}
	if f := g.flights[key]; f != nil {
		return f, nil
	}
	f := &flight{done: make(chan struct{})}
	g.flights[key] = f
	g.wg.Go(func() {
		f.err = background.Guard(func() error { return g.image(g.detach(), img, creds, &f.progress) })()
		g.mu.Lock()
		delete(g.flights, key)
		g.mu.Unlock()
		close(f.done)
	})
	return f, nil
}
