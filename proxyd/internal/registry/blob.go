package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Blob opens a blob of the repository of ref as the registry has it. The reader
// gives an error instead of io.EOF if the size or the digest are not those of
// desc, and if the registry pauses for too long.
func (c *Client) Blob(ctx context.Context, ref string, desc ocispec.Descriptor, creds *wire.Credentials) (io.ReadCloser, error) {
	s, err := c.session(ref, creds)
	if err != nil {
		return nil, err
	}
	d, err := parseDigest(desc.Digest)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	rc, err := s.repo.Blobs().Fetch(ctx, descriptor(d, desc.Size))
	if err != nil {
		defer cancel(nil)
		return nil, s.wireError(ctx, err)
	}
	b := &blobReader{
		rc: rc, h: sha256.New(), want: d, left: desc.Size, cancel: cancel,
		fail: func(err error) error {
			if cause := context.Cause(ctx); errors.Is(cause, errIdle) {
				err = cause
				return &wire.Error{Code: wire.CodeUpstream, Message: "registry " + s.ref.host + ": " + err.Error()}
			}
			return s.wireError(ctx, err)
		},
	}
	b.idle = time.AfterFunc(idleTimeout, func() { cancel(errIdle) })
	return b, nil
}

// HasBlob asks the registry whether the repository of ref has a blob that creds
// may read; nil means it does.
func (c *Client) HasBlob(ctx context.Context, ref string, desc ocispec.Descriptor, creds *wire.Credentials) error {
	s, err := c.session(ref, creds)
	if err != nil {
		return err
	}
	d, err := parseDigest(desc.Digest)
	if err != nil {
		return err
	}
	got, err := s.repo.Blobs().Resolve(ctx, d.String())
	if err != nil {
		return s.wireError(ctx, err)
	}
	if got.Size != desc.Size {
		return unsupported("blob %s has %d bytes, not %d", d, got.Size, desc.Size)
	}
	return nil
}

var errIdle = fmt.Errorf("no data for %v", idleTimeout)

// blobReader checks a blob while it is read.
type blobReader struct {
	rc     io.ReadCloser
	h      hash.Hash
	want   toc.Digest
	left   int64
	idle   *time.Timer
	cancel context.CancelCauseFunc
	fail   func(error) error
	err    error // sticky
}

// Read implements io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	// The time of a reader that reads slowly is not that of the registry.
	b.idle.Reset(idleTimeout)
	n, err := b.rc.Read(p)
	b.idle.Stop()
	b.left -= int64(n)
	_, _ = b.h.Write(p[:n]) // never fails
	switch {
	case b.left < 0:
		b.err = b.fail(errors.New("a blob is longer than its descriptor says"))
		return 0, b.err
	case errors.Is(err, io.EOF):
		b.err = b.end()
	case err != nil:
		b.err = b.fail(err)
	}
	return n, b.err
}

// end checks what was read.
func (b *blobReader) end() error {
	if b.left != 0 {
		return b.fail(io.ErrUnexpectedEOF)
	}
	if toc.Digest(b.h.Sum(nil)) != b.want {
		return b.fail(fmt.Errorf("a blob has not the digest %s", b.want))
	}
	return io.EOF
}

// Close implements io.Closer.
func (b *blobReader) Close() error {
	b.idle.Stop()
	b.cancel(nil)
	return b.rc.Close()
}
