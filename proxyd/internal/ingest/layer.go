package ingest

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/pack"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// maxHoles bounds what the sparse files of a layer have beyond the bytes in
	// its tar: a header can promise terabytes of zeros.
	maxHoles = 32 << 30
	// maxMetadata bounds the memory for the entries of a layer.
	maxMetadata = 256 << 20
)

// Layer reads a layer, compressed or not, to its end and writes its objects to
// w. Errors that lie in the layer are of type *wire.Error with CodeUnsupported;
// other ones come from r, w and ctx.
func Layer(ctx context.Context, r io.Reader, w io.Writer) (*toc.TOC, error) {
	pw, err := pack.NewWriter(w)
	if err != nil {
		return nil, err
	}
	s := newStream()
	p := &parser{builder: toc.NewBuilder(), frames: make(map[toc.Digest]uint32), object: sha256.New()}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.fill(ctx, r) })
	g.Go(func() error { return s.sum(ctx) })
	p.out = newCompressor(ctx, g, pw)
	g.Go(func() error {
		defer p.out.close()
		return p.read(ctx, s.reader(ctx))
	})
	if err := g.Wait(); err != nil {
		return nil, unsupportedFault(err)
	}
	t := p.builder.TOC(s.diffID)
	if err := pw.Finish(p.objects); err != nil {
		return nil, err
	}
	return t, nil
}

// DiffID reads a layer to its end and returns the digest of its plain bytes.
func DiffID(ctx context.Context, r io.Reader) (toc.Digest, error) {
	s := newStream()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.fill(ctx, r) })
	g.Go(func() error { return s.sum(ctx) })
	g.Go(func() error {
		_, err := io.Copy(io.Discard, s.reader(ctx))
		return err
	})
	if err := g.Wait(); err != nil {
		return toc.Digest{}, unsupportedFault(err)
	}
	return s.diffID, nil
}

// unsupportedFault tells errors of the layer from others.
func unsupportedFault(err error) error {
	if f := (*faultError)(nil); errors.As(err, &f) {
		return &wire.Error{Code: wire.CodeUnsupported, Message: f.Error()}
	}
	return err
}

// layerError marks an error as one that lies in the layer.
func layerError(err error) error {
	var f *faultError
	if errors.As(err, &f) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &faultError{err}
}

// parser reads the tar of a layer.
type parser struct {
	builder *toc.Builder
	objects []pack.Object // aligned with those of the builder
	out     *compressor

	job    *job                  // being filled; may be nil
	next   uint32                // number of the next frame
	frames map[toc.Digest]uint32 // of the pieces of objects that have several
	object hash.Hash             // of the contents of a large file

	holes    int64 // that sparse files may still have
	metadata int
}

func (p *parser) read(ctx context.Context, r io.Reader) error {
	p.holes = maxHoles
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return layerError(err)
		}
		if err := p.member(ctx, h, tr); err != nil {
			return layerError(err)
		}
	}
	if p.job != nil {
		p.out.submit(p.job)
		p.job = nil
	}
	// What comes after the end of the archive counts for the diff ID.
	_, err := io.Copy(io.Discard, r)
	return err
}

// member reads one member of the tar.
func (p *parser) member(ctx context.Context, h *tar.Header, tr io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	e, err := entry(h)
	if err != nil {
		return err
	}
	if e.Name == "" && e.Type != toc.TypeDir {
		return nil // containerd writes nothing to the root
	}
	if p.metadata += cost(e); p.metadata > maxMetadata {
		return layerErrorf("its entries take more than %d bytes", maxMetadata)
	}
	if e.Size > toc.MaxObjectSize {
		return layerErrorf("file of %d bytes", e.Size)
	}
	if sparse(h) {
		if p.holes -= e.Size; p.holes < 0 {
			return layerErrorf("its sparse files have more than %d bytes", int64(maxHoles))
		}
	}
	switch {
	case e.Size == 0:
		_, _, err = p.builder.Add(*e, nil)
		return err
	case e.Size <= toc.PieceSize:
		return p.small(ctx, e, tr)
	}
	return p.large(ctx, e, tr)
}

// room returns n bytes at the end of a job.
func (p *parser) room(ctx context.Context, n int) ([]byte, error) {
	if p.job != nil && len(p.job.plain)+n > cap(p.job.plain) {
		p.out.submit(p.job)
		p.job = nil
	}
	if p.job == nil {
		j, err := p.out.next(ctx)
		if err != nil {
			return nil, err
		}
		p.job = j
	}
	k := len(p.job.plain)
	return p.job.plain[k : k+n : k+n], nil
}

// keep makes the bytes in room a piece, and returns the number of its frame.
func (p *parser) keep(n int) (uint32, error) {
	if p.next == math.MaxUint32 {
		return 0, layerErrorf("too many pieces")
	}
	p.job.plain = p.job.plain[:len(p.job.plain)+n]
	p.job.ends = append(p.job.ends, len(p.job.plain))
	p.next++
	return p.next - 1, nil
}

// small reads a file of one piece.
func (p *parser) small(ctx context.Context, e *toc.Entry, tr io.Reader) error {
	buf, err := p.room(ctx, int(e.Size))
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(tr, buf); err != nil {
		return err
	}
	e.Object = sha256.Sum256(buf)
	_, fresh, err := p.builder.Add(*e, nil)
	if err != nil || !fresh {
		return err // the next file overwrites the room
	}
	frame, err := p.keep(len(buf))
	if err != nil {
		return err
	}
	p.objects = append(p.objects, pack.Object{Size: e.Size, Frames: []uint32{frame}})
	return nil
}

// large reads a file of several pieces. Before the last is read it is not known
// whether the object is new; but each of its pieces is known if it is not.
func (p *parser) large(ctx context.Context, e *toc.Entry, tr io.Reader) error {
	p.object.Reset()
	var pieces []toc.Digest
	var frames []uint32
	for left := e.Size; left > 0; {
		n := int(min(left, toc.PieceSize))
		buf, err := p.room(ctx, n)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(tr, buf); err != nil {
			return err
		}
		_, _ = p.object.Write(buf) // never fails
		d := toc.Digest(sha256.Sum256(buf))
		frame, ok := p.frames[d]
		if !ok {
			if frame, err = p.keep(n); err != nil {
				return err
			}
			p.frames[d] = frame
		}
		pieces, frames = append(pieces, d), append(frames, frame)
		left -= int64(n)
	}
	p.object.Sum(e.Object[:0])
	_, fresh, err := p.builder.Add(*e, pieces)
	if err != nil || !fresh {
		return err
	}
	p.objects = append(p.objects, pack.Object{Size: e.Size, Frames: frames})
	return nil
}
