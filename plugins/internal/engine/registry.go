package engine

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// fromRegistry fetches whole layers and takes from them what img lacks: what is
// left when no proxyd can help.
func (e *Engine) fromRegistry(ctx context.Context, img *image) error {
	e.metrics.resumes.WithLabelValues(string(fromRegistry)).Inc()
	e.mu.Lock()
	src, layers, records := img.source, img.layers, img.rec.Layers
	e.mu.Unlock()
	fetch := src.fetcher()
	for i, l := range layers {
		want := e.wanted(img, l)
		if len(want) == 0 {
			continue
		}
		desc := records[i].Descriptor
		log.G(ctx).WithFields(log.Fields{"ref": src.ref, "layer": desc.Digest, "objects": len(want)}).Info("fetching the layer from the registry")
		if err := e.fromLayer(ctx, img, l, desc, fetch, want); err != nil {
			e.metrics.refused(fromRegistry, err)
			return fmt.Errorf("layer %s from the registry: %w", desc.Digest, err)
		}
	}
	return nil
}

// wanted lists the objects of l that img lacks.
func (e *Engine) wanted(img *image, l *layer) map[toc.Digest]toc.Object {
	e.mu.Lock()
	defer e.mu.Unlock()
	want := map[toc.Digest]toc.Object{}
	p := img.pending
	if p == nil {
		return nil
	}
	for _, o := range l.objects {
		if i, ok := p.index[o.Digest]; ok && p.need[i] && !e.objects.Has(o.Digest) {
			want[o.Digest] = o
		}
	}
	return want
}

// fromLayer streams one layer and stores the wanted objects in it. Which member of
// the tar holds which object follows from the TOC; the store checks the bytes.
func (e *Engine) fromLayer(ctx context.Context, img *image, l *layer, desc ocispec.Descriptor, fetch fetchFunc, want map[toc.Digest]toc.Object) (err error) {
	t, err := e.readTOC(l)
	if err != nil {
		return err
	}
	byName := map[string]toc.Digest{} // the last of a name wins, as in the tar
	for _, entry := range t.Entries {
		if entry.Type == toc.TypeReg && entry.Size > 0 {
			byName[entry.Name] = entry.Object
		}
	}
	rc, err := fetch(ctx, desc)
	if err != nil {
		return err
	}
	defer rc.Close()
	z, err := compression.DecompressStream(countingReader{rc, &img.meter, e.metrics.received.WithLabelValues(string(fromRegistry))})
	if err != nil {
		return err
	}
	defer z.Close()
	for tr := tar.NewReader(z); len(want) > 0; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%d objects are not in it: %w", len(want), errdefs.ErrDataLoss)
		}
		if err != nil {
			return err
		}
		d := byName[strings.TrimPrefix(path.Clean("/"+h.Name), "/")]
		o, wanted := want[d]
		if !wanted || h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse || h.Size != o.Size {
			continue
		}
		switch err := e.fromReader(o, tr); {
		case errors.Is(err, toc.ErrInvalid) || errdefs.IsDataLoss(err):
			continue // another member of the same name
		case err != nil:
			return err
		}
		delete(want, d)
		e.arrived(fromRegistry, d)
	}
	return nil
}

// fromReader stores an object read from r.
func (e *Engine) fromReader(o toc.Object, r io.Reader) error {
	buf := make([]byte, min(o.Size, toc.PieceSize))
	if o.Size <= toc.PieceSize {
		if _, err := io.ReadFull(r, buf); err != nil {
			return err
		}
		return e.objects.Put(o, buf)
	}
	w, err := e.objects.Writer(o)
	if err != nil {
		return err
	}
	for i, left := 0, o.Size; left > 0 && !w.Complete(); i++ {
		b := buf[:min(left, toc.PieceSize)]
		if _, err := io.ReadFull(r, b); err != nil {
			return errors.Join(err, w.Close())
		}
		if err := w.Piece(i, b); err != nil {
			return errors.Join(err, w.Close())
		}
		left -= int64(len(b))
	}
	return w.Close()
}

type countingReader struct {
	io.Reader
	m        *meter
	received prometheus.Counter
}

func (r countingReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.m.add(int64(n))
	r.received.Add(float64(n))
	return n, err
}

// fetcher asks the registry as the client of the pull would; after a restart,
// when that has gone, as anybody.
func (s source) fetcher() fetchFunc {
	if s.registry != nil {
		return s.registry
	}
	return func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		resolver := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))})
		f, err := resolver.Fetcher(ctx, s.ref)
		if err != nil {
			return nil, err
		}
		return f.Fetch(ctx, desc)
	}
}

// BlobInfo is what is known of a virtual blob.
type BlobInfo struct {
	Digest  digest.Digest
	Size    int64
	Created time.Time
}

// Virtual tells whether d is a layer blob that the node can produce without
// having it, and its size.
func (e *Engine) Virtual(d digest.Digest) (BlobInfo, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if b := e.blobs[d]; b != nil {
		return b.BlobInfo, true
	}
	return BlobInfo{}, false
}

// WalkVirtual calls fn for each virtual blob until it fails.
func (e *Engine) WalkVirtual(fn func(BlobInfo) error) error {
	e.mu.Lock()
	all := make([]BlobInfo, 0, len(e.blobs))
	for _, b := range e.blobs {
		all = append(all, b.BlobInfo)
	}
	e.mu.Unlock()
	for _, b := range all {
		if err := fn(b); err != nil {
			return err
		}
	}
	return nil
}

// FetchBlob streams a virtual blob from proxyd or the registry. The caller
// checks the digest.
func (e *Engine) FetchBlob(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	e.mu.Lock()
	b := e.blobs[d]
	var src source
	if b != nil {
		src = b.img.source
	}
	e.mu.Unlock()
	if b == nil {
		return nil, fmt.Errorf("blob %s is not virtual: %w", d, errdefs.ErrNotFound)
	}
	want, err := toc.ParseDigest(d.String())
	if err != nil {
		return nil, err
	}
	var failures []error
	for _, p := range e.proxiesFor(src.host) {
		rc, err := p.client.Blob(ctx, wire.BlobRequest{Ref: src.ref, Credentials: src.creds, Digest: want, Size: b.Size})
		if err == nil {
			return rc, nil
		}
		failures = append(failures, err)
	}
	// Who pulls the image now may know better than who did before.
	for _, fetch := range []fetchFunc{lentRegistry(ctx), src.fetcher()} {
		if fetch == nil {
			continue
		}
		rc, err := fetch(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: b.Size})
		if err == nil {
			return rc, nil
		}
		failures = append(failures, fmt.Errorf("registry: %w", err))
	}
	return nil, errors.Join(failures...)
}

// ForgetBlob makes d no longer virtual. It tells whether it was.
func (e *Engine) ForgetBlob(d digest.Digest) (bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, was := e.blobs[d]
	delete(e.blobs, d)
	return was, nil
}
