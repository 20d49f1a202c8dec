// Package ingest turns layers of a registry into tables of contents and packs.
package ingest

import (
	"context"
	"errors"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Source is where layers come from. *registry.Client is one.
type Source interface {
	Blob(ctx context.Context, ref string, desc ocispec.Descriptor, creds *wire.Credentials) (io.ReadCloser, error)
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
type Ingester struct{ cfg Config }

// New returns an Ingester. It must be closed.
func New(cfg Config) *Ingester { return &Ingester{cfg: cfg} }

// Ready returns the layers of the image if nothing is left to ingest, and nil
// if Image has to be called first.
func (g *Ingester) Ready(ctx context.Context, img *registry.Image) ([]*meta.Layer, error) {
	return nil, errors.New("under construction")
}

// Image ingests what is not there yet of an image, and returns its layers from
// the lowest to the top. If ctx ends, Image returns, but the ingest goes on for
// the next caller. progress, if not nil, is called from Image itself, at least
// twice a second, with the bytes of layers read from the registry.
func (g *Ingester) Image(ctx context.Context, img *registry.Image, creds *wire.Credentials, progress func(done, total int64)) ([]*meta.Layer, error) {
	return nil, errors.New("under construction")
}

// TOC returns the encoded table of contents of a layer.
func (g *Ingester) TOC(ctx context.Context, l *meta.Layer) ([]byte, error) {
	return nil, errors.New("under construction")
}

// Close ends what is under way and waits for it.
func (g *Ingester) Close() error { return nil }
