package fromtar

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	chunkSize = 256 << 10
	chunks    = 6 // in flight between the stages of one layer
	// maxLayer bounds the uncompressed bytes of a layer: a small blob can stand
	// for very many.
	maxLayer = 256 << 30
)

// stream carries the plain bytes of a layer from the decompressor by way of the
// hash to the reader of the tar.
type stream struct {
	free, hash, parse chan []byte

	diffID toc.Digest // set before parse is closed

	chunk, rest []byte // of parse; rest is what is left to read of chunk
}

func newStream() *stream {
	s := &stream{
		free:  make(chan []byte, chunks),
		hash:  make(chan []byte, chunks),
		parse: make(chan []byte, chunks),
	}
	for range chunks {
		s.free <- make([]byte, chunkSize)
	}
	return s
}

// fill decompresses r to its end. It reads r until r itself says that it ended,
// since that is when r has checked its digest.
func (s *stream) fill(ctx context.Context, r io.Reader) error {
	src := &source{r: r}
	err := s.decompress(ctx, bufio.NewReaderSize(src, readBuffer))
	if src.err != nil {
		return src.err // whatever the decompressor made of it
	}
	return err
}

func (s *stream) decompress(ctx context.Context, r *bufio.Reader) error {
	d, err := decompress(r)
	if err != nil {
		return layerError(err)
	}
	defer d.Close()
	for total := int64(0); ; {
		var buf []byte
		select {
		case buf = <-s.free:
		case <-ctx.Done():
			return ctx.Err()
		}
		n, err := 0, error(nil)
		for buf = buf[:chunkSize]; n < len(buf) && err == nil; {
			var m int
			m, err = d.Read(buf[n:])
			n += m
		}
		if total += int64(n); total > maxLayer {
			return layerErrorf("it has more than %d bytes", int64(maxLayer))
		}
		s.hash <- buf[:n] // has room for all chunks
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return layerError(err)
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return layerError(err)
	}
	close(s.hash)
	return nil
}

// source remembers how reading a blob failed.
type source struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// sum computes the diff ID.
func (s *stream) sum(ctx context.Context) error {
	h := sha256.New()
	for {
		select {
		case buf, ok := <-s.hash:
			if !ok {
				h.Sum(s.diffID[:0])
				close(s.parse)
				return nil
			}
			_, _ = h.Write(buf) // never fails
			s.parse <- buf      // has room for all chunks
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reader returns the end of the stream.
func (s *stream) reader(ctx context.Context) io.Reader {
	return &streamReader{s: s, done: ctx.Done(), err: ctx.Err}
}

type streamReader struct {
	s    *stream
	done <-chan struct{}
	err  func() error
}

// Read implements io.Reader.
func (r *streamReader) Read(p []byte) (int, error) {
	s := r.s
	for len(s.rest) == 0 {
		if s.chunk != nil {
			s.free <- s.chunk // has room for all chunks
			s.chunk = nil
		}
		select {
		case buf, ok := <-s.parse:
			if !ok {
				return 0, io.EOF
			}
			s.chunk, s.rest = buf, buf
		case <-r.done:
			return 0, r.err()
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
