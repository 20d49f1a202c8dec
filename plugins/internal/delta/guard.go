package delta

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// guard is the body of a response: it counts bytes and fails reads that get none
// for too long. The time its user spends between reads does not count, or a slow
// disk would look like a dead proxyd.
type guard struct {
	cancel context.CancelCauseFunc // of the request, which lives as long as the body
	cause  func() error            // why it was ended, if it was
	addr   string
	idle   time.Duration
	timer  *time.Timer
	body   io.ReadCloser
	n      atomic.Int64
	last   *atomic.Int64 // unix nanoseconds of the last byte, or nil
	once   sync.Once
}

// newGuard returns a guard and the context for its request.
func newGuard(ctx context.Context, addr string, idle time.Duration) (context.Context, *guard) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &guard{cancel: cancel, cause: func() error { return context.Cause(ctx) }, addr: addr, idle: idle}
}

func (g *guard) arm(d time.Duration) {
	if g.timer == nil {
		g.timer = time.AfterFunc(d, func() { g.cancel(ErrStalled) })
		return
	}
	g.timer.Reset(d)
}

func (g *guard) disarm() { g.timer.Stop() }

// Read implements io.Reader.
func (g *guard) Read(p []byte) (int, error) {
	g.arm(g.idle)
	n, err := g.body.Read(p)
	g.disarm()
	g.n.Add(int64(n))
	if n > 0 && g.last != nil {
		g.last.Store(time.Now().UnixNano())
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = g.explain(err)
	}
	return n, err
}

// Close implements io.Closer. A body not read to its end costs the connection.
func (g *guard) Close() error {
	var err error
	g.once.Do(func() {
		err = g.body.Close()
		g.end()
	})
	return err
}

func (g *guard) end() {
	if g.timer != nil {
		g.timer.Stop()
	}
	g.cancel(context.Canceled)
}

// drain reads what is left of an answer whose last frame has been seen, so that its
// connection can be used again. More than a few bytes, or a wait, are not worth it.
func (g *guard) drain() {
	const few, wait = 4 << 10, 500 * time.Millisecond
	g.idle = wait
	_, _ = io.CopyN(io.Discard, g, few)
}

// explain classes an error of the connection: ended by the caller, stalled, or lost.
func (g *guard) explain(err error) error {
	switch cause := g.cause(); {
	case errors.Is(cause, ErrStalled):
		return fmt.Errorf("proxy %s: no byte received for %s: %w", g.addr, g.idle, ErrStalled)
	case cause != nil:
		return fmt.Errorf("proxy %s: %w", g.addr, cause)
	default:
		return &connError{addr: g.addr, err: err}
	}
}

// verifiedBlob hands out io.EOF only after the right bytes.
type verifiedBlob struct {
	rc   io.ReadCloser
	hash hash.Hash
	left int64
	want toc.Digest
	err  error
}

// Read implements io.Reader.
func (v *verifiedBlob) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.rc.Read(p)
	if int64(n) > v.left {
		v.err = fmt.Errorf("blob %s: more bytes than its size: %w", v.want, errdefs.ErrDataLoss)
		return 0, v.err
	}
	v.left -= int64(n)
	v.hash.Write(p[:n])
	if errors.Is(err, io.EOF) {
		switch {
		case v.left > 0:
			err = fmt.Errorf("blob %s: %d bytes missing: %w", v.want, v.left, io.ErrUnexpectedEOF)
		case toc.Digest(v.hash.Sum(nil)) != v.want:
			err = fmt.Errorf("blob %s: wrong digest sha256:%x: %w", v.want, v.hash.Sum(nil), errdefs.ErrDataLoss)
		}
	}
	v.err = err
	return n, err
}

// Close implements io.Closer.
func (v *verifiedBlob) Close() error { return v.rc.Close() }
