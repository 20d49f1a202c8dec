// Package fromtar makes the TOC of a layer from its tar, compressed or not.
//
// A layer is read once, in a pipeline whose stages run at the same time and hold a
// bounded number of buffers:
//
//	source → decompress → hash (diff ID) → tar → entries, hashes of contents
//
// proxyd makes its TOCs with it, and who names the TOC of a layer in a manifest does
// (toc.Annotation). So what it makes of a tar is part of the format: where another
// TOC is to come of a layer that had one, the format needs a new version.
package fromtar

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime/debug"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// maxHoles bounds what the sparse files of a layer have beyond the bytes in
	// its tar: a header can promise terabytes of zeros.
	maxHoles = 32 << 30
	// maxMetadata bounds the memory for the entries of a layer.
	maxMetadata = 256 << 20
)

// Contents takes the contents of a layer while it is read. Its methods are called by
// one goroutine.
type Contents interface {
	// Room returns room for the next piece, of n bytes, at most toc.PieceSize. Until
	// Keep it is the same room as before.
	Room(ctx context.Context, n int) ([]byte, error)
	// Keep keeps what is in the room, and returns a number for it.
	Keep() (uint32, error)
	// Object tells which pieces make the next object of TOC.Objects.
	Object(size int64, pieces []uint32)
}

// LayerError is an error that lies in the layer: it will not get better.
type LayerError struct{ err error }

// Error implements error.
func (e *LayerError) Error() string { return "the layer cannot be read: " + e.err.Error() }

// Unwrap returns what is wrong with the layer.
func (e *LayerError) Unwrap() error { return e.err }

func layerErrorf(format string, args ...any) error {
	return &LayerError{fmt.Errorf(format, args...)}
}

// layerError marks an error as one that lies in the layer.
func layerError(err error) error {
	var f *LayerError
	if errors.As(err, &f) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &LayerError{err}
}

// Layer reads a layer to its end and gives its contents to c. Nil: nobody wants them.
// Errors that lie in the layer, which those of c do, are of type *LayerError; other ones
// come from r and ctx.
func Layer(ctx context.Context, r io.Reader, c Contents) (*toc.TOC, error) {
	if c == nil {
		c = &nobody{}
	}
	s := newStream()
	p := &parser{builder: toc.NewBuilder(), contents: c, pieces: make(map[toc.Digest]uint32), object: sha256.New(), holes: maxHoles}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(careful(func() error { return s.fill(ctx, r) }))
	g.Go(careful(func() error { return s.sum(ctx) }))
	g.Go(careful(func() error { return p.read(ctx, s.reader(ctx)) }))
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return p.builder.TOC(s.diffID), nil
}

// DiffID reads a layer to its end and returns the digest of its plain bytes. Errors
// are those of Layer.
func DiffID(ctx context.Context, r io.Reader) (toc.Digest, error) {
	s := newStream()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(careful(func() error { return s.fill(ctx, r) }))
	g.Go(careful(func() error { return s.sum(ctx) }))
	g.Go(careful(func() error {
		_, err := io.Copy(io.Discard, s.reader(ctx))
		return err
	}))
	if err := g.Wait(); err != nil {
		return toc.Digest{}, err
	}
	return s.diffID, nil
}

// careful returns f with panics made errors: what a layer triggers in a decoder must not
// end the process.
func careful(f func() error) func() error {
	return func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		return f()
	}
}

// nobody is Contents that are not wanted.
type nobody struct{ room []byte }

// Room implements Contents.
func (n *nobody) Room(_ context.Context, size int) ([]byte, error) {
	if n.room == nil {
		n.room = make([]byte, toc.PieceSize)
	}
	return n.room[:size], nil
}

// Keep implements Contents.
func (*nobody) Keep() (uint32, error) { return 0, nil }

// Object implements Contents.
func (*nobody) Object(int64, []uint32) {}

// parser reads the tar of a layer.
type parser struct {
	builder  *toc.Builder
	contents Contents
	pieces   map[toc.Digest]uint32 // of objects that have several
	object   hash.Hash             // of the contents of a large file

	holes    int64 // that sparse files may still have
	metadata int
}

func (p *parser) read(ctx context.Context, r io.Reader) error {
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

// small reads a file of one piece.
func (p *parser) small(ctx context.Context, e *toc.Entry, tr io.Reader) error {
	buf, err := p.contents.Room(ctx, int(e.Size))
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
	n, err := p.contents.Keep()
	if err != nil {
		return err
	}
	p.contents.Object(e.Size, []uint32{n})
	return nil
}

// large reads a file of several pieces. Before the last is read it is not known
// whether the object is new; but each of its pieces is known if it is not.
func (p *parser) large(ctx context.Context, e *toc.Entry, tr io.Reader) error {
	p.object.Reset()
	var pieces []toc.Digest
	var numbers []uint32
	for left := e.Size; left > 0; {
		n := int(min(left, toc.PieceSize))
		buf, err := p.contents.Room(ctx, n)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(tr, buf); err != nil {
			return err
		}
		_, _ = p.object.Write(buf) // never fails
		d := toc.Digest(sha256.Sum256(buf))
		number, ok := p.pieces[d]
		if !ok {
			if number, err = p.contents.Keep(); err != nil {
				return err
			}
			p.pieces[d] = number
		}
		pieces, numbers = append(pieces, d), append(numbers, number)
		left -= int64(n)
	}
	p.object.Sum(e.Object[:0])
	_, fresh, err := p.builder.Add(*e, pieces)
	if err != nil || !fresh {
		return err
	}
	p.contents.Object(e.Size, numbers)
	return nil
}
