package lazyfs

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// read is a read that waits for its bytes.
type read struct {
	unique uint64 // the kernel's name for it
	id     uint64 // ours
	f      *file
	off, n int64
	errno  unix.Errno // of the source
}

// link is the child's side of the connection to the parent, which comes and goes:
// whoever connects last is the parent, and is told all that is wanted.
type link struct {
	hello frame
	fuse  int
	ready chan *read // what has arrived or failed
	quit  func()

	mu     sync.Mutex // guards the following
	next   uint64
	byID   map[uint64]*read
	byName map[uint64]*read // by unique
	conn   *net.UnixConn    // nil: no parent
	out    []byte           // frames to send to it
	more   *sync.Cond       // of mu: out or conn has changed
}

func newLink(hello frame, fuse int, quit func()) *link {
	l := &link{
		hello: hello, fuse: fuse, quit: quit,
		ready:  make(chan *read, finishers),
		byID:   make(map[uint64]*read),
		byName: make(map[uint64]*read),
	}
	l.more = sync.NewCond(&l.mu)
	return l
}

// want asks the parent for what r reads, now or when there is one.
func (l *link) want(r *read) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	r.id = l.next
	l.byID[r.id] = r
	l.byName[r.unique] = r
	l.send(frame{typ: frameRange, id: r.id, digest: r.f.d, off: r.off, n: r.n})
}

// maxSeen is how many bytes of frames may wait before what is seen is left out:
// readers come first.
const maxSeen = 1 << 20

// seen tells the parent, if there is one, that something was opened or read.
func (l *link) seen(d toc.Digest, off, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.out) < maxSeen {
		l.send(frame{typ: frameSeen, digest: d, off: off, n: n})
	}
}

// cancel gives up a read by the kernel's name. It is nil if none waits.
func (l *link) cancel(unique uint64) *read {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.byName[unique]
	if r == nil {
		return nil
	}
	l.drop(r)
	l.send(frame{typ: frameCancel, id: r.id})
	return r
}

func (l *link) drop(r *read) {
	delete(l.byID, r.id)
	if l.byName[r.unique] == r {
		delete(l.byName, r.unique)
	}
}

// send queues a frame: it must not block those who serve the kernel.
func (l *link) send(f frame) {
	if l.conn != nil {
		l.out = f.append(l.out)
		l.more.Broadcast()
	}
}

// accept takes parents, one after the other.
func (l *link) accept(ln *net.UnixListener) error {
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			return err
		}
		// Under the lock: whoever has read the greeting hears of all that follows.
		// It does not block, as nothing else is in the new connection's buffer.
		l.mu.Lock()
		if err := sendHello(c, l.hello, l.fuse); err != nil {
			l.mu.Unlock()
			_ = c.Close() // it has gone again
			continue
		}
		if l.conn != nil {
			_ = l.conn.Close() // its reader ends
		}
		l.conn, l.out = c, nil
		for _, r := range l.byID {
			l.send(frame{typ: frameRange, id: r.id, digest: r.f.d, off: r.off, n: r.n})
		}
		l.more.Broadcast()
		l.mu.Unlock()
		go l.write(c)
		go l.read(c)
	}
}

// write sends what is queued, as long as c is the connection.
func (l *link) write(c *net.UnixConn) {
	var buf []byte
	for {
		l.mu.Lock()
		for l.conn == c && len(l.out) == 0 {
			l.more.Wait()
		}
		if l.conn != c {
			l.mu.Unlock()
			return
		}
		buf, l.out = l.out, buf[:0]
		l.mu.Unlock()
		if _, err := c.Write(buf); err != nil {
			return // the reader sees it, too
		}
	}
}

// read takes answers until the parent goes.
func (l *link) read(c *net.UnixConn) {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		_ = c.Close() // nothing more to say
		if l.conn == c {
			l.conn, l.out = nil, nil
			l.more.Broadcast()
		}
	}()
	for {
		f, err := readFrame(c)
		if err != nil {
			return
		}
		switch f.typ {
		case frameDone:
			l.mu.Lock()
			r := l.byID[f.id]
			if r != nil {
				l.drop(r)
			}
			l.mu.Unlock()
			if r != nil {
				r.errno = unix.Errno(f.code)
				l.ready <- r
			}
		case frameQuit:
			l.quit()
		}
	}
}
