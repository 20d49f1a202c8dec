// Package registry asks OCI registries for images, always with the
// credentials of the client on whose behalf proxyd asks: that the registry
// answers is what authorises the client.
package registry

import (
	"context"
	"io"
	"net/http"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Documents keeps indexes, manifests and configs per repository. meta.Store is one.
type Documents interface {
	Document(ctx context.Context, repo string, digest toc.Digest) (*meta.Document, error)
	PutDocument(ctx context.Context, repo string, d *meta.Document) error
}

// Config of a Client.
type Config struct {
	// PlainHTTP are the registries ("host[:port]") that are spoken to by HTTP
	// without TLS. "*" stands for any sequence of characters.
	PlainHTTP []string
	// Allowed are the registries that may be spoken to; none means all. Patterns
	// as in PlainHTTP.
	Allowed []string
	// UserAgent is sent with every request.
	UserAgent string
	// Documents, if not nil, saves asking for documents again.
	Documents Documents
	// CacheTTL is how long a positive answer of a registry is believed for the
	// same reference, platform and credentials; 0 means 30 seconds, negative
	// not at all.
	CacheTTL time.Duration
	// Transport, if not nil, takes the place of http.DefaultTransport.
	Transport http.RoundTripper
}

// Client asks registries. It is safe for concurrent use.
type Client struct{ cfg Config }

// New returns a Client.
func New(cfg Config) *Client { return &Client{cfg: cfg} }

// Image resolves ref ("host/repo:tag", "host/repo@sha256:…") for a platform.
// The registry of ref is asked with creds (nil: anonymously). Errors are of type
// *wire.Error unless ctx ended.
func (c *Client) Image(ctx context.Context, ref string, platform ocispec.Platform, creds *wire.Credentials) (*Image, error) {
	return nil, &wire.Error{Code: wire.CodeInternal, Message: "under construction"}
}

// Blob opens a blob of the repository of ref as the registry has it. The reader
// gives an error instead of io.EOF if the size or the digest are not those of desc.
func (c *Client) Blob(ctx context.Context, ref string, desc ocispec.Descriptor, creds *wire.Credentials) (io.ReadCloser, error) {
	return nil, &wire.Error{Code: wire.CodeInternal, Message: "under construction"}
}

// HasBlob asks the registry whether the repository of ref has a blob that creds may read.
func (c *Client) HasBlob(ctx context.Context, ref string, desc ocispec.Descriptor, creds *wire.Credentials) error {
	return &wire.Error{Code: wire.CodeInternal, Message: "under construction"}
}
