package convert

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
	"github.com/starlight-delta/starlight/proxyd/wire/toc/fromtar"
)

// Format of layers.
type Format string

// The formats.
const (
	EStargz     Format = "estargz"
	ZstdChunked Format = "zstdchunked"
)

// parts is how many parts of a layer are compressed at once. It is part of the result,
// so it does not depend on the machine.
const parts = 4

// layer is a converted layer.
type layer struct {
	ocispec.Descriptor // with annotations
	diffID             digest.Digest
}

// layer converts a layer and pushes it, once.
func (c *converter) layer(ctx context.Context, desc ocispec.Descriptor) (layer, error) {
	if l, ok := c.layers[desc.Digest]; ok {
		return l, nil
	}
	switch {
	case len(desc.URLs) > 0:
		return layer{}, errors.New("it is elsewhere than in the registry (foreign), and cannot be converted")
	case strings.HasSuffix(desc.MediaType, "+encrypted"):
		return layer{}, errors.New("it is encrypted, and cannot be converted")
	case !images.IsLayerType(desc.MediaType):
		return layer{}, fmt.Errorf("it is a %q, not a layer", desc.MediaType)
	}
	from, err := c.fetch(ctx, desc)
	if err != nil {
		return layer{}, err
	}
	defer from.remove()
	l, to, err := c.build(ctx, io.NewSectionReader(from, 0, desc.Size))
	if err != nil {
		return layer{}, err
	}
	defer to.remove()
	from.remove() // what is on the disk is two layers at most
	if _, err := to.Seek(0, io.SeekStart); err != nil {
		return layer{}, err
	}
	plain := ocispec.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size}
	there, err := c.dst.Exists(ctx, plain)
	if err != nil {
		return layer{}, fmt.Errorf("look for %s: %w", plain.Digest, err)
	}
	if !there {
		if err := c.dst.Push(ctx, plain, io.NewSectionReader(to, 0, l.Size)); err != nil && !exists(err) {
			return layer{}, fmt.Errorf("push %s: %w", plain.Digest, err)
		}
	}
	c.layers[desc.Digest] = l
	if c.Layer != nil {
		c.Layer(desc, l.Descriptor)
	}
	return l, nil
}

// fetch puts a blob into a file, and checks it.
func (c *converter) fetch(ctx context.Context, desc ocispec.Descriptor) (_ *temp, err error) {
	r, err := c.src.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := newTemp(c.Dir)
	if err != nil {
		return nil, err
	}
	v := content.NewVerifyReader(r, desc)
	if _, err = io.Copy(f, v); err == nil {
		err = v.Verify()
	}
	if err != nil {
		f.remove()
		return nil, err
	}
	return f, nil
}

// build converts a layer into a file.
func (c *converter) build(ctx context.Context, from *io.SectionReader) (_ layer, _ *temp, err error) {
	l := layer{Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Annotations: map[string]string{}}}
	opts := []estargz.Option{
		estargz.WithContext(ctx), estargz.WithParallelism(parts),
		estargz.WithGzipHelperFunc(func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }),
	}
	if c.Format == ZstdChunked {
		l.MediaType = ocispec.MediaTypeImageLayerZstd
		opts = append(opts, estargz.WithCompression(&zstdCompression{
			Compressor: &zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: l.Annotations},
		}))
	}
	blob, err := estargz.Build(from, opts...)
	if err != nil {
		return l, nil, err
	}
	defer blob.Close()
	to, err := newTemp(c.Dir)
	if err != nil {
		return l, nil, err
	}
	defer func() {
		if err != nil {
			to.remove()
		}
	}()
	h := digest.Canonical.Digester()
	if l.Size, err = io.Copy(io.MultiWriter(to, h.Hash()), blob); err != nil {
		return l, nil, err
	}
	size, err := blob.UncompressedSize()
	if err != nil {
		return l, nil, err
	}
	if err := blob.Close(); err != nil {
		return l, nil, err
	}
	l.Digest, l.diffID = h.Digest(), blob.DiffID()
	l.Annotations[estargz.TOCJSONDigestAnnotation] = blob.TOCDigest().String()
	l.Annotations[estargz.StoreUncompressedSizeAnnotation] = strconv.FormatInt(size, 10)
	if l.Annotations[toc.Annotation], err = tocDigest(ctx, io.NewSectionReader(to, 0, l.Size), l.diffID); err != nil {
		return l, nil, err
	}
	return l, to, nil
}

// tocDigest returns the digest of the TOC that proxyd makes of a blob.
func tocDigest(ctx context.Context, blob io.Reader, diffID digest.Digest) (string, error) {
	t, err := fromtar.Layer(ctx, blob, nil)
	if err != nil {
		return "", fmt.Errorf("as converted, for its TOC: %w", err)
	}
	if t.DiffID.String() != diffID.String() {
		return "", fmt.Errorf("as converted, it has the diff ID %s, not %s", t.DiffID, diffID)
	}
	return toc.Digest(sha256.Sum256(t.Encode())).String(), nil
}

// zstdCompression is an estargz.Compression.
type zstdCompression struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

// temp is a file that nobody else sees.
type temp struct{ *os.File }

func newTemp(dir string) (*temp, error) {
	f, err := os.CreateTemp(dir, "ctr-starlight-")
	if err != nil {
		return nil, err
	}
	// It goes with the process, however that ends.
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &temp{f}, nil
}

// remove may be called more than once.
func (t *temp) remove() { _ = t.Close() }

// limited fetches documents only.
type limited struct{ content.Fetcher }

// Fetch implements content.Fetcher.
func (l limited) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if desc.Size > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read: %w", desc.Digest, desc.Size, maxDocument, errdef.ErrSizeExceedsLimit)
	}
	return l.Fetcher.Fetch(ctx, desc)
}

func exists(err error) bool { return errors.Is(err, errdef.ErrAlreadyExists) }
