package content

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Puller makes the image of a layer lazy that a client is about to fetch, and tells
// whether the layer is a virtual blob now.
type Puller interface {
	Ahead(ctx context.Context, layer digest.Digest) bool
}

// SetPuller sets who is asked before layers are fetched. Without, nobody is.
func (s *Store) SetPuller(p Puller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puller = p
}

// Writer returns a writer that looks finished to a client that begins to fetch a
// layer which has become virtual.
func (s *Store) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	w, err := s.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	p := s.puller
	s.mu.Unlock()
	layer := layerOf(o.Ref)
	if p == nil || layer == "" {
		return w, nil
	}
	return &aheadWriter{Writer: w, ctx: ctx, store: s, puller: p, ref: o.Ref, layer: layer, size: o.Desc.Size}, nil
}

// layerOf returns the digest of the layer that all clients write under this ref, to
// which metadata has put a prefix; "" if it is of something else. Metadata keeps
// the digest itself from the store below.
func layerOf(ref string) digest.Digest {
	last := ref[strings.LastIndexByte(ref, '/')+1:]
	name, ok := strings.CutPrefix(last, "layer-")
	d := digest.Digest(name)
	if !ok || d.Validate() != nil {
		return ""
	}
	return d
}

// aheadWriter asks before the first byte, and not when it is made: that is done in
// a transaction of metadata, where nobody may wait.
type aheadWriter struct {
	content.Writer
	ctx    context.Context //nolint:containedctx // of the one fetch that this value belongs to
	store  *Store
	puller Puller
	ref    string
	layer  digest.Digest
	size   int64

	once    sync.Once
	virtual bool // the layer need not be written
}

// Status asks, the first time.
func (w *aheadWriter) Status() (content.Status, error) {
	st, err := w.Writer.Status()
	if err != nil {
		return st, err
	}
	w.once.Do(func() {
		if st.Offset != 0 || !w.puller.Ahead(w.ctx, w.layer) {
			return
		}
		b, ok := w.store.engine.Virtual(w.layer)
		w.virtual = ok && (w.size == 0 || w.size == b.Size)
		w.size = b.Size
	})
	if w.virtual {
		st.Offset, st.Total, st.Expected = w.size, w.size, w.layer
	}
	return st, nil
}

// Write implements io.Writer.
func (w *aheadWriter) Write(b []byte) (int, error) {
	if w.virtual && len(b) > 0 {
		return 0, fmt.Errorf("layer %s is complete: %w", w.layer, errdefs.ErrFailedPrecondition)
	}
	return w.Writer.Write(b)
}

// Truncate implements content.Writer. To 0 it says that the client wants to write
// all the same.
func (w *aheadWriter) Truncate(size int64) error {
	if w.virtual && size == w.size {
		return nil
	}
	w.virtual = false
	return w.Writer.Truncate(size)
}

// Digest implements content.Writer.
func (w *aheadWriter) Digest() digest.Digest {
	if w.virtual {
		return w.layer
	}
	return w.Writer.Digest()
}

// Sync implements content.Syncer, which metadata calls before its transaction.
func (w *aheadWriter) Sync() error {
	if s, ok := w.Writer.(content.Syncer); ok {
		return s.Sync()
	}
	return nil
}

// Commit drops the ingest if the layer is virtual.
func (w *aheadWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	if !w.virtual {
		return w.Writer.Commit(ctx, size, expected, opts...)
	}
	if size != 0 && size != w.size || expected != "" && expected != w.layer {
		return fmt.Errorf("layer %s of %d bytes, not %s of %d: %w", w.layer, w.size, expected, size, errdefs.ErrFailedPrecondition)
	}
	if _, ok := w.store.engine.Virtual(w.layer); !ok {
		return fmt.Errorf("layer %s is not virtual any more; fetch it again: %w", w.layer, errdefs.ErrUnavailable)
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := w.store.Abort(ctx, w.ref); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}
