package ingest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
	"github.com/starlight-delta/starlight/proxyd/wire/toc/fromtar"
)

const (
	// attempts at a layer whose registry breaks off.
	attempts = 4
	// packBuffer gathers the frames of small files.
	packBuffer = 1 << 20
)

// progress counts bytes of blobs.
type progress struct{ read, total atomic.Int64 }

// image ingests an image.
func (g *Ingester) image(ctx context.Context, img *registry.Image, creds *wire.Credentials, p *progress) error {
	rec := &meta.Image{Repo: img.Name, Manifest: img.Manifest.Digest, Config: img.Config.Digest}
	distinct := make(map[meta.ImageLayer]registry.Layer)
	for _, l := range img.Layers {
		key := meta.ImageLayer{Blob: l.Digest, DiffID: l.DiffID}
		rec.Layers = append(rec.Layers, key)
		if _, ok := distinct[key]; !ok {
			distinct[key] = l
			p.total.Add(l.Descriptor.Size)
		}
	}
	eg, egctx := errgroup.WithContext(ctx)
	// As many locks and connections as there may be layers at a time; one of them
	// waits while another replica has the layer.
	eg.SetLimit(g.cfg.Parallel)
	for _, l := range distinct {
		eg.Go(background.Guard(func() error { return g.layer(egctx, img, l, creds, p) }))
	}
	if err := eg.Wait(); err != nil {
		return err
	}
	return g.cfg.Meta.PutImage(ctx, rec)
}

// LockName is the name under which the files of a layer are locked while they are
// written or deleted.
func LockName(diffID toc.Digest) string { return "layer " + diffID.String() }

// layer makes sure that a layer is known, and that this repository has it.
func (g *Ingester) layer(ctx context.Context, img *registry.Image, l registry.Layer, creds *wire.Credentials, p *progress) error {
	// By diff ID, so that two blobs of the same layer do not write the same pack.
	unlock, err := g.cfg.Meta.Lock(ctx, LockName(l.DiffID))
	if err != nil {
		return err
	}
	defer unlock()
	known, err := g.cfg.Meta.LayerBlob(ctx, l.Digest)
	if err == nil && known.DiffID != l.DiffID {
		return mismatch(l)
	}
	if err == nil && g.present(ctx, l.DiffID) {
		// Known from another image, maybe of a repository that this client may not
		// read. The manifest alone does not prove that this one has the blob.
		if err := g.cfg.Source.HasBlob(ctx, img.Name, l.Descriptor, creds); err != nil {
			return err
		}
		p.read.Add(l.Descriptor.Size)
		return g.cfg.Meta.TouchLayers(ctx, []toc.Digest{l.DiffID}, time.Now())
	}
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return err
	}
	if err := g.layers.Acquire(ctx, 1); err != nil {
		return err
	}
	defer g.layers.Release(1)
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		err := g.fetch(ctx, img, l, creds, p)
		var w *wire.Error
		if err != nil && (!errors.As(err, &w) || w.Code != wire.CodeUpstream) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxTries(attempts), backoff.WithMaxElapsedTime(0), backoff.WithBackOff(retryDelay()))
	return err
}

func retryDelay() backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 200*time.Millisecond, 10*time.Second
	return b
}

func mismatch(l registry.Layer) error {
	return &wire.Error{Code: wire.CodeUnsupported, Message: fmt.Sprintf("layer %s has not the diff ID %s", l.Digest, l.DiffID)}
}

// present tells whether a layer is recorded and its files are there.
func (g *Ingester) present(ctx context.Context, diffID toc.Digest) bool {
	m, err := g.cfg.Meta.Layer(ctx, diffID)
	if err != nil {
		return false
	}
	for _, key := range []string{m.TOCKey, m.PackKey} {
		if _, err := g.cfg.Blobs.Stat(ctx, key); err != nil {
			return false
		}
	}
	return true
}

// fetch reads a layer from the registry and records it.
func (g *Ingester) fetch(ctx context.Context, img *registry.Image, l registry.Layer, creds *wire.Credentials, p *progress) (err error) {
	rc, err := g.cfg.Source.Blob(ctx, img.Name, l.Descriptor, creds)
	if err != nil {
		return err
	}
	defer rc.Close()
	r := &counted{r: rc, n: &p.read}
	defer func() {
		if err != nil {
			p.read.Add(-r.own) // the next attempt reads it again
		}
	}()
	b := &meta.LayerBlob{Digest: l.Digest, Size: l.Descriptor.Size, DiffID: l.DiffID}
	if g.present(ctx, l.DiffID) {
		// The same layer, compressed in another way. Whether it is the same is
		// not to be taken on trust: that would give a layer to whoever can name it.
		got, err := fromtar.DiffID(ctx, r)
		if err != nil {
			return unsupported(err)
		}
		if got != l.DiffID {
			return mismatch(l)
		}
		m, err := g.cfg.Meta.Layer(ctx, l.DiffID)
		if err != nil {
			return err
		}
		return g.cfg.Meta.PutLayer(ctx, m, b)
	}
	m, err := g.store(ctx, r, l)
	if err != nil {
		return err
	}
	return g.cfg.Meta.PutLayer(ctx, m, b)
}

// store reads a layer into the blob store.
func (g *Ingester) store(ctx context.Context, r io.Reader, l registry.Layer) (*meta.Layer, error) {
	m := &meta.Layer{DiffID: l.DiffID, TOCKey: "toc/" + l.DiffID.Path(), PackKey: "pack/" + l.DiffID.Path()}
	w, err := g.cfg.Blobs.Create(ctx, m.PackKey)
	if err != nil {
		return nil, err
	}
	bw := bufio.NewWriterSize(w, packBuffer)
	t, err := Layer(ctx, r, bw)
	if err == nil && t.DiffID != l.DiffID {
		err = mismatch(l)
	}
	var enc []byte
	if err == nil {
		if enc = t.Encode(); len(enc) > wire.MaxTOCFrame {
			err = &wire.Error{Code: wire.CodeUnsupported, Message: "a layer has too many entries"}
		}
	}
	if err == nil {
		err = bw.Flush()
	}
	if err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	if err := w.Commit(); err != nil {
		return nil, err
	}
	if err := blob.Put(ctx, g.cfg.Blobs, m.TOCKey, tocEncoder().EncodeAll(enc, nil)); err != nil {
		return nil, err
	}
	m.TOC = sha256.Sum256(enc)
	m.Entries, m.Objects = len(t.Entries), len(t.Objects)
	for _, o := range t.Objects {
		m.Bytes += o.Size
	}
	return m, nil
}

// counted counts what is read.
type counted struct {
	r   io.Reader
	n   *atomic.Int64
	own int64 // what of n came from here
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	c.own += int64(n)
	return n, err
}
