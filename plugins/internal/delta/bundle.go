package delta

import (
	"errors"
	"fmt"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Bundle is the streamed answer to a request. It is used by one goroutine at a
// time, except for WireBytes.
type Bundle struct {
	r    *wire.Reader
	g    *guard
	addr string
	sent int64
	idle time.Duration // longest silence within the contents
	done bool          // the last frame has been seen
}

// streaming tells that contents come from now on.
func (b *Bundle) streaming() { b.g.idle = b.idle }

// Next returns the next frame, whose bytes are valid until the call after it, and
// io.EOF after the last. An error frame is returned as an error.
func (b *Bundle) Next() (wire.Frame, error) {
	f, err := b.r.Next()
	switch {
	case err == nil:
	case errors.Is(err, wire.ErrVersion):
		return f, fmt.Errorf("proxy %s: %w: %w", b.addr, err, ErrProtocol)
	case errors.Is(err, wire.ErrTruncated), errors.Is(err, toc.ErrInvalid):
		return f, fmt.Errorf("proxy %s: %w", b.addr, err)
	default:
		return f, err
	}
	switch f.Type {
	case wire.FrameEnd, wire.FrameRetry, wire.FramePlan:
		b.done = true
	case wire.FrameError:
		b.done = true
		return f, &refusedError{b.addr, &wire.Error{Code: clean(f.Err.Code), Message: clean(f.Err.Message)}}
	}
	return f, nil
}

// WireBytes returns how many bytes of the bundle have been received.
func (b *Bundle) WireBytes() int64 { return b.g.n.Load() }

// RequestBytes returns how many bytes the body of the request had.
func (b *Bundle) RequestBytes() int64 { return b.sent }

// Address returns the address of the proxyd that answers.
func (b *Bundle) Address() string { return b.addr }

// Close ends the answer. After the last frame the connection stays warm.
func (b *Bundle) Close() error {
	if b.done {
		b.g.drain()
	}
	return b.g.Close()
}
