package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	maxNesting   = 4  // indexes in indexes
	maxDocuments = 32 // that are looked at for one image
	maxTags      = 100_000
)

// Image resolves ref ("host/repo:tag", "host/repo@sha256:…") for a platform; the
// zero platform takes the first manifest, which is the one if ref names it.
// The registry of ref is asked with creds (nil: anonymously); one request is
// enough if the documents are known. Errors are of type *wire.Error unless ctx
// ended.
func (c *Client) Image(ctx context.Context, ref string, platform ocispec.Platform, creds *wire.Credentials) (*Image, error) {
	s, err := c.session(ref, creds)
	if err != nil {
		return nil, err
	}
	if s.ref.object() == "" {
		return nil, &wire.Error{Code: wire.CodeInvalid, Message: "the reference has neither tag nor digest"}
	}
	key := imageKey{ref: s.ref.name + "@" + s.ref.object(), platform: formatPlatform(platform), creds: c.hash(creds)}
	if img, ok := c.images.get(key); ok {
		return img, nil
	}
	img, err := s.image(ctx, platform)
	if err != nil {
		if errors.Is(err, errNoPlatform) {
			err = &wire.Error{Code: wire.CodeNotFound, Message: "the image has no manifest for " + platforms.Format(platform)}
		}
		return nil, s.wireError(ctx, err)
	}
	if img.cacheable() {
		c.images.put(key, img)
	}
	return img, nil
}

// Tags lists the tags of "host/repo".
func (c *Client) Tags(ctx context.Context, repo string, creds *wire.Credentials) (tags []string, err error) {
	s, err := c.session(repo, creds)
	if err != nil {
		return nil, err
	}
	if err := s.repo.Tags(ctx, "", func(page []string) error {
		if tags = append(tags, page...); len(tags) > maxTags {
			return &wire.Error{Code: wire.CodeUnsupported, Message: "the repository has too many tags"}
		}
		return nil
	}); err != nil {
		return nil, s.wireError(ctx, err)
	}
	return tags, nil
}

// Forget makes Image ask the registry anew for what a tag points to.
func (c *Client) Forget(repo, tag string) {
	ref := repo + "@" + tag
	c.images.forget(func(k imageKey) bool { return k.ref == ref })
}

// Known is Image for a client that was given the image before, "host/repo@sha256:…": no
// registry is asked. It fails with meta.ErrNotFound if the documents are not all known.
func (c *Client) Known(ctx context.Context, ref string, platform ocispec.Platform) (*Image, error) {
	s, err := c.session(ref, nil)
	if err != nil {
		return nil, err
	}
	s.offline = true
	img, err := s.image(ctx, platform)
	if errors.Is(err, errNoPlatform) {
		err = fmt.Errorf("manifest for %s: %w", platforms.Format(platform), meta.ErrNotFound)
	}
	return img, err
}

// cacheable tells whether an image is of a usual size.
func (i *Image) cacheable() bool {
	n := len(i.Manifest.Bytes) + len(i.Config.Bytes)
	if i.Index != nil {
		n += len(i.Index.Bytes)
	}
	for _, b := range i.Inner {
		n += len(b.Bytes)
	}
	return n <= maxCachedImage
}

func (s *session) image(ctx context.Context, platform ocispec.Platform) (*Image, error) {
	top, err := s.top(ctx)
	if err != nil {
		return nil, err
	}
	w := &walk{s: s, match: platforms.Only(platform), left: maxDocuments}
	if platform.OS == "" && platform.Architecture == "" {
		w.match = platforms.All
	}
	found, err := w.image(ctx, top, nil)
	if err != nil {
		return nil, err
	}
	img := &Image{Name: s.ref.name, Tag: s.ref.tag, Manifest: *found.manifest, Config: *found.config, Layers: found.layers}
	if len(found.indexes) > 0 {
		img.Index, img.Inner = found.indexes[0], nil
		for _, b := range found.indexes[1:] {
			img.Inner = append(img.Inner, *b)
		}
	}
	return img, nil
}

// top asks the registry for what the reference points to. This is the request
// that authorises the client: no known document is used before it.
func (s *session) top(ctx context.Context) (*Blob, error) {
	if s.offline {
		return s.known(ctx, digest.Digest(s.ref.object()))
	}
	desc, err := s.repo.Manifests().Resolve(ctx, s.ref.object())
	if err != nil {
		if !askAgain(err) {
			return nil, err
		}
		return s.topByGet(ctx)
	}
	return s.document(ctx, desc, s.repo.Manifests())
}

// askAgain tells whether an answer to HEAD leaves hope for GET: some registries
// do not implement HEAD, or leave out the digest. A refusal is one.
func askAgain(err error) bool {
	if resp, ok := errors.AsType[*errcode.ErrorResponse](err); ok {
		return resp.StatusCode == http.StatusMethodNotAllowed
	}
	var netErr interface{ Timeout() bool } // url.Error and net.Error
	return !errors.Is(err, errdef.ErrNotFound) && !errors.Is(err, auth.ErrBasicCredentialNotFound) && !errors.As(err, &netErr)
}

func (s *session) topByGet(ctx context.Context) (*Blob, error) {
	desc, rc, err := s.repo.Manifests().FetchReference(ctx, s.ref.object())
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return s.readDocument(ctx, desc, rc)
}

// fetcher is the part of a store of oras that is needed here.
type fetcher interface {
	Fetch(ctx context.Context, target ocispec.Descriptor) (io.ReadCloser, error)
}

// document returns a document of the repository. It must be called only after
// the registry has accepted the client for this repository.
func (s *session) document(ctx context.Context, desc ocispec.Descriptor, from fetcher) (*Blob, error) {
	if s.offline {
		return s.known(ctx, desc.Digest)
	}
	d, err := parseDigest(desc.Digest)
	if err != nil {
		return nil, err
	}
	if err := checkSize(desc); err != nil {
		return nil, err
	}
	if docs := s.c.cfg.Documents; docs != nil {
		known, err := docs.Document(ctx, s.ref.name, d)
		if err == nil && known.MediaType == desc.MediaType && sha256.Sum256(known.Bytes) == d {
			return &Blob{MediaType: known.MediaType, Digest: d, Bytes: known.Bytes}, nil
		}
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return nil, internal(err)
		}
	}
	rc, err := from.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return s.readDocument(ctx, desc, rc)
}

// known returns a document that this repository's registry gave to somebody before.
func (s *session) known(ctx context.Context, of digest.Digest) (*Blob, error) {
	d, err := parseDigest(of)
	if err != nil {
		return nil, err
	}
	if s.c.cfg.Documents == nil {
		return nil, meta.ErrNotFound
	}
	doc, err := s.c.cfg.Documents.Document(ctx, s.ref.name, d)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(doc.Bytes) != d {
		return nil, fmt.Errorf("document %s is damaged: %w", d, meta.ErrNotFound)
	}
	return &Blob{MediaType: doc.MediaType, Digest: d, Bytes: doc.Bytes}, nil
}

// readDocument reads and checks a document, and keeps it.
func (s *session) readDocument(ctx context.Context, desc ocispec.Descriptor, r io.Reader) (*Blob, error) {
	d, err := parseDigest(desc.Digest)
	if err != nil {
		return nil, err
	}
	if err := checkSize(desc); err != nil {
		return nil, err
	}
	b, err := content.ReadAll(r, desc)
	if err != nil {
		return nil, err
	}
	if docs := s.c.cfg.Documents; docs != nil {
		if err := docs.PutDocument(ctx, s.ref.name, &meta.Document{Digest: d, MediaType: desc.MediaType, Bytes: b}); err != nil {
			return nil, internal(err)
		}
	}
	return &Blob{MediaType: desc.MediaType, Digest: d, Bytes: b}, nil
}

// internal marks errors of our own database.
func internal(err error) error {
	return &wire.Error{Code: wire.CodeInternal, Message: "documents: " + err.Error()}
}

// walk looks for the manifest of a platform.
type walk struct {
	s     *session
	match platforms.MatchComparer
	left  int // documents that may still be looked at
}

// found is the result of a walk.
type found struct {
	indexes          []*Blob // from the outermost
	manifest, config *Blob
	layers           []Layer
}

// image finds the manifest below b. The platform is nil if no index told it; then
// the config must match.
func (w *walk) image(ctx context.Context, b *Blob, platform *ocispec.Platform, indexes ...*Blob) (*found, error) {
	m, err := decodeManifest(b)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(indexTypes, b.MediaType) {
		return w.manifest(ctx, b, m, platform, indexes)
	}
	if len(indexes) == maxNesting {
		return nil, unsupported("more than %d indexes in each other", maxNesting)
	}
	indexes = append(slices.Clone(indexes), b)
	for _, d := range candidates(m, w.match) {
		if w.left--; w.left < 0 {
			return nil, unsupported("more than %d manifests to choose from", maxDocuments)
		}
		child, err := w.s.document(ctx, d, w.s.repo.Manifests())
		if err != nil {
			return nil, err
		}
		f, err := w.image(ctx, child, d.Platform, indexes...)
		if errors.Is(err, errNoPlatform) {
			continue
		}
		return f, err
	}
	return nil, errNoPlatform
}

func (w *walk) manifest(ctx context.Context, b *Blob, m *manifestDoc, platform *ocispec.Platform, indexes []*Blob) (*found, error) {
	if !slices.Contains(configTypes, m.Config.MediaType) {
		return nil, unsupported("config of media type %.100q", m.Config.MediaType)
	}
	cfg, err := w.s.document(ctx, *m.Config, w.s.repo.Blobs())
	if err != nil {
		return nil, err
	}
	c, layers, err := decodeConfig(cfg, m)
	if err != nil {
		return nil, err
	}
	if platform == nil && !w.match.Match(platforms.Normalize(c.Platform)) {
		return nil, errNoPlatform
	}
	return &found{indexes: indexes, manifest: b, config: cfg, layers: layers}, nil
}

// descriptor describes a blob to oras.
func descriptor(d toc.Digest, size int64) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.Digest(d.String()), Size: size}
}
