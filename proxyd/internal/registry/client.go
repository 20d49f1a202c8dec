// Package registry asks OCI registries for images, always with the
// credentials of the client on whose behalf proxyd asks: that the registry
// answers is what authorises the client.
package registry

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net"
	"net/http"
	"net/netip"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	defaultCacheTTL = 5 * time.Second
	// maxCached bounds both caches; when one is full, answers are not cached.
	maxCached = 1024
	// maxCachedImage: larger documents are asked for again.
	maxCachedImage = 1 << 20
	// headerTimeout is how long a registry may think about an answer.
	headerTimeout = 30 * time.Second
	// idleTimeout is how long a registry may pause in the middle of a blob.
	idleTimeout = time.Minute
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
	// same reference, platform and credentials, and how long the tokens that the
	// credentials got are kept; 0 means 30 seconds, negative not at all.
	CacheTTL time.Duration
	// Observe, if not nil, wraps the transport of all requests.
	Observe func(http.RoundTripper) http.RoundTripper
}

// Client asks registries. It is safe for concurrent use.
type Client struct {
	cfg     Config
	http    *http.Client
	key     []byte // of the hashes of credentials
	images  expiring[imageKey, *Image]
	clients expiring[clientKey, *auth.Client]
}

type imageKey struct {
	ref, platform string
	creds         [sha256.Size]byte
}

type clientKey struct {
	host  string
	creds [sha256.Size]byte
}

// New returns a Client.
func New(cfg Config) *Client {
	if cfg.CacheTTL == 0 {
		cfg.CacheTTL = defaultCacheTTL
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	t.MaxIdleConnsPerHost = 16
	t.ResponseHeaderTimeout = headerTimeout
	var transport http.RoundTripper = t
	if cfg.Observe != nil {
		transport = cfg.Observe(t)
	}
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return &Client{
		cfg:     cfg,
		http:    &http.Client{Transport: retry.NewTransport(transport)},
		key:     key,
		images:  expiring[imageKey, *Image]{ttl: cfg.CacheTTL},
		clients: expiring[clientKey, *auth.Client]{ttl: cfg.CacheTTL},
	}
}

// session is what one request of a client needs: the repository, and the
// client's credentials for it.
type session struct {
	c    *Client
	ref  reference
	repo *remote.Repository
	// offline: only known documents are used, the registry is not asked.
	offline bool
}

// session checks that the registry may be spoken to and prepares to do so.
func (c *Client) session(ref string, creds *wire.Credentials) (*session, error) {
	r, err := parse(ref)
	if err != nil {
		return nil, err
	}
	if len(c.cfg.Allowed) > 0 && !matchAny(c.cfg.Allowed, r.host) {
		return nil, &wire.Error{Code: wire.CodeDenied, Message: "this proxyd does not serve registry " + r.host}
	}
	repo, err := remote.NewRepository(r.name)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeInvalid, Message: "malformed reference"}
	}
	repo.PlainHTTP = matchAny(c.cfg.PlainHTTP, r.host)
	repo.ManifestMediaTypes = manifestTypes
	repo.MaxMetadataBytes = wire.MaxBlob
	repo.Client = c.client(repo, creds)
	return &session{c: c, ref: r, repo: repo}, nil
}

// client returns the HTTP client for these credentials, which keeps the tokens
// that the registry gave for them.
func (c *Client) client(repo *remote.Repository, creds *wire.Credentials) *auth.Client {
	host := repo.Reference.Host()
	key := clientKey{host: host, creds: c.hash(creds)}
	if a, ok := c.clients.get(key); ok {
		return a
	}
	var cred auth.Credential
	switch {
	case creds == nil:
	case creds.Username == "":
		cred.RefreshToken = creds.Secret
	default:
		cred.Username, cred.Password = creds.Username, creds.Secret
	}
	a := &auth.Client{
		Client:     c.http,
		Credential: auth.StaticCredential(host, cred),
		Cache:      auth.NewCache(),
		ClientID:   "starlight",
	}
	if c.cfg.UserAgent != "" {
		a.SetUserAgent(c.cfg.UserAgent)
	}
	if repo.PlainHTTP {
		// A registry that the operator trusts without TLS is one of their own
		// network, and so is its token server.
		a.BlockedRealmPrefixes = []netip.Prefix{}
	}
	c.clients.put(key, a)
	return a
}

// hash names credentials without telling them.
func (c *Client) hash(creds *wire.Credentials) (sum [sha256.Size]byte) {
	if creds == nil {
		return sum
	}
	h := hmac.New(sha256.New, c.key)
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(creds.Username))))
	h.Write([]byte(creds.Username))
	h.Write([]byte(creds.Secret))
	h.Sum(sum[:0])
	return sum
}

// manifestTypes are asked for: what containerd asks for, without schema 1.
var manifestTypes = []string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerIndex, dockerManifest,
}
