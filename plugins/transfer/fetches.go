package transfer

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fetches counts what a transfer gets from the registry.
type fetches struct{ requests, bytes atomic.Int64 }

// countingFetcher counts what it fetches.
type countingFetcher struct {
	transfer.Fetcher
	n *fetches
}

// Fetch implements transfer.Fetcher.
func (f countingFetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := f.Fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	f.n.requests.Add(1)
	return &countedBlob{rc, f.n}, nil
}

type countedBlob struct {
	io.ReadCloser
	n *fetches
}

// Read implements io.Reader.
func (b *countedBlob) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.bytes.Add(int64(n))
	return n, err
}

// Seek implements io.Seeker, by which an interrupted ingest goes on where it was.
func (b *countedBlob) Seek(offset int64, whence int) (int64, error) {
	if s, ok := b.ReadCloser.(io.Seeker); ok {
		return s.Seek(offset, whence)
	}
	return 0, fmt.Errorf("seek in a blob of the registry: %w", errdefs.ErrNotImplemented)
}
