package lazyfs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// peer is the parent's side of the connection to a child.
type peer struct {
	pid   int
	pidfd int // -1 when released

	conn *net.UnixConn
	mu   sync.Mutex // held while a frame is written
}

func newPeer(conn *net.UnixConn, pid int) (*peer, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d of the lazy file system: %w", pid, err)
	}
	return &peer{pid: pid, pidfd: fd, conn: conn}, nil
}

// serve hands what the child wants to the source, and what it saw to who observes,
// until the connection ends.
func (p *peer) serve(ctx context.Context, c *Config) error {
	ctx, cancel := context.WithCancel(ctx)
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex // guards cancels
		ranges = make(map[uint64]context.CancelFunc)
	)
	defer wg.Wait()
	defer cancel()
	for {
		f, err := readFrame(p.conn)
		if err != nil {
			return err
		}
		switch f.typ {
		case frameRange:
			rctx, done := context.WithCancel(ctx)
			mu.Lock()
			ranges[f.id] = done
			mu.Unlock()
			wg.Go(func() {
				defer done()
				began := time.Now()
				err := c.Source.Range(rctx, f.digest, f.off, f.n)
				if err == nil && c.Observe != nil {
					c.Observe(Access{Object: f.digest, Off: f.off, N: f.n, At: began, Wait: time.Since(began)})
				}
				mu.Lock()
				delete(ranges, f.id)
				mu.Unlock()
				if err != nil && rctx.Err() != nil {
					return // nobody waits, or the connection has ended: then they wait for the next
				}
				errno := errnoOf(err)
				if errno != 0 {
					c.Log.WithError(err).WithField("digest", f.digest.String()).WithField("errno", errno.Error()).
						Warn("lazy read failed")
				}
				p.send(frame{typ: frameDone, code: uint32(errno), id: f.id})
			})
		case frameSeen:
			if c.Observe != nil {
				c.Observe(Access{Object: f.digest, Off: f.off, N: f.n, At: time.Now()})
			}
		case frameCancel:
			mu.Lock()
			done := ranges[f.id]
			mu.Unlock()
			if done != nil {
				done()
			}
		}
	}
}

// send writes a frame. If it fails, so does the reader of the connection.
func (p *peer) send(f frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = p.conn.Write(f.append(nil))
}

// hangUp ends the connection, and with it serve. The child goes on.
func (p *peer) hangUp() { _ = p.conn.Close() } // nothing to lose

// release is hangUp for good. Nobody uses the peer any more.
func (p *peer) release() {
	p.hangUp()
	if p.pidfd >= 0 {
		_ = unix.Close(p.pidfd) // nothing is written
		p.pidfd = -1
	}
}

// end ends the child: by word, or if it does not obey in two seconds, by force.
func (p *peer) end() {
	_ = p.conn.SetWriteDeadline(time.Now().Add(time.Second))
	p.send(frame{typ: frameQuit})
	poll := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	gone := false
	_ = retry(func() error {
		n, err := unix.Poll(poll, 2000)
		gone = n > 0
		return err
	})
	if !gone {
		if err := unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0); err == nil {
			// It may be in a system call that takes a while; the kernel sends what it
			// had to the next one in any case.
			_ = retry(func() error { _, err := unix.Poll(poll, 2000); return err })
		}
	}
	p.release()
}

// errnoOf is what a reader gets for an error of the source.
func errnoOf(err error) unix.Errno {
	switch {
	case err == nil:
		return 0
	case errdefs.IsNotFound(err):
		return unix.ENOENT
	case errors.Is(err, unix.EINTR):
		return unix.EINTR
	default:
		return unix.EIO
	}
}
