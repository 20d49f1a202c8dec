package lazyfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// readers take requests from the kernel, and answer at once what can be.
	readers = 4
	// finishers answer reads that have waited.
	finishers = 4

	// forever in seconds: answers never change.
	forever = 10 * 365 * 24 * 3600
)

// child serves the file system.
type child struct {
	fuse     int
	nodes    *nodes
	link     *link
	requests *counters
	observed bool // the parent wants to know what is opened and read
}

// serve answers requests until the file system is unmounted.
func (c *child) serve() error {
	errs := make(chan error, readers)
	for range finishers {
		go c.finish() // for the life of the process
	}
	for range readers {
		go func() { errs <- c.loop() }()
	}
	go c.nodes.tidy()
	return <-errs // the connection is gone for all of them
}

// loop takes requests. Its two buffers are all it needs: what has to wait holds none.
func (c *child) loop() error {
	req := make([]byte, requestSize)
	buf := make([]byte, outHeaderSize+maxRead)
	for {
		n, err := unix.Read(c.fuse, req)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue // ENOENT: aborted before we got it
		case errors.Is(err, unix.ENODEV):
			return nil
		case err != nil:
			return fmt.Errorf("read /dev/fuse: %w", err)
		}
		in, ok := structOf[fuse.InHeader](req[:n])
		if !ok {
			return fmt.Errorf("read /dev/fuse: a request of %d bytes", n)
		}
		c.requests.count(in.Opcode)
		if err := c.handle(&in, req[:n], buf); err != nil {
			return fmt.Errorf("answer request %d: %w", in.Opcode, err)
		}
	}
}

// handle answers one request. Its errors are those of the connection.
func (c *child) handle(in *fuse.InHeader, req, buf []byte) error {
	switch in.Opcode {
	case opLookup:
		var out fuse.EntryOut
		if errno := c.lookup(in.NodeId, req[inHeaderSize:], &out); errno != 0 {
			return reply(c.fuse, in.Unique, errno, nil)
		}
		return reply(c.fuse, in.Unique, 0, bytesOf(&out))
	case opGetattr:
		var out fuse.AttrOut
		if errno := c.getattr(in.NodeId, &out); errno != 0 {
			return reply(c.fuse, in.Unique, errno, nil)
		}
		return reply(c.fuse, in.Unique, 0, bytesOf(&out))
	case opRead:
		in, ok := structOf[fuse.ReadIn](req)
		if !ok {
			return fmt.Errorf("a read of %d bytes", len(req))
		}
		return c.read(&in, buf)
	case opStatfs:
		out := fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255}
		return reply(c.fuse, in.Unique, 0, bytesOf(&out))
	case opInterrupt:
		in, ok := structOf[fuse.InterruptIn](req)
		if !ok {
			return fmt.Errorf("an interrupt of %d bytes", len(req))
		}
		if r := c.link.cancel(in.Unique); r != nil {
			c.nodes.release(r.f)
			return reply(c.fuse, r.unique, unix.EINTR, nil)
		}
		// Either another reader has the request in its hands, and will answer or
		// register it, or it was answered: then the kernel ignores this.
		return reply(c.fuse, in.InHeader.Unique, unix.EAGAIN, nil)
	case opReaddir:
		// No names: overlayfs without data-only layers lists the roots of all its layers.
		return reply(c.fuse, in.Unique, 0, nil)
	case opForget, opBatchForget, opDestroy:
		return nil // without answer
	default:
		// OPEN, OPENDIR, FLUSH, GETXATTR … : the kernel remembers and does not ask again.
		return reply(c.fuse, in.Unique, unix.ENOSYS, nil)
	}
}

func (c *child) lookup(dir uint64, name []byte, out *fuse.EntryOut) unix.Errno {
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	switch {
	case dir == rootID:
		id, ok := parseDir(string(name))
		if !ok {
			return unix.ENOENT
		}
		out.NodeId = id
		dirAttr(id, &out.Attr)
	case dir < firstObj:
		d, err := toc.ParseDigest(fmt.Sprintf("sha256:%02x%s", dir-firstDir, name))
		if err != nil {
			return unix.ENOENT
		}
		size, err := c.nodes.lookup(d)
		if err != nil {
			return c.errno(err)
		}
		out.NodeId = nodeOf(d)
		fileAttr(out.NodeId, size, &out.Attr)
		if c.observed {
			c.link.seen(d, 0, 0)
		}
	default:
		return unix.ENOTDIR
	}
	out.EntryValid, out.AttrValid = forever, forever
	return 0
}

func (c *child) getattr(id uint64, out *fuse.AttrOut) unix.Errno {
	if id < firstObj {
		dirAttr(id, &out.Attr)
	} else {
		_, size, err := c.nodes.resolve(id)
		if err != nil {
			return c.errno(err)
		}
		fileAttr(id, size, &out.Attr)
	}
	out.AttrValid = forever
	return 0
}

func dirAttr(id uint64, a *fuse.Attr) {
	a.Ino, a.Mode, a.Nlink, a.Blksize = id, unix.S_IFDIR|0o555, 2, 4096
}

func fileAttr(id uint64, size int64, a *fuse.Attr) {
	a.Ino, a.Mode, a.Nlink, a.Blksize = id, unix.S_IFREG|0o444, 1, 4096
	a.Size, a.Blocks = uint64(size), (uint64(size)+511)/512
}

// read answers a read if the object is complete, and leaves it to the link if not.
func (c *child) read(in *fuse.ReadIn, buf []byte) error {
	if in.Size > maxRead || in.NodeId < firstObj {
		return reply(c.fuse, in.Unique, unix.EIO, nil)
	}
	f, err := c.nodes.open(in.NodeId)
	if err != nil {
		return reply(c.fuse, in.Unique, c.errno(err), nil)
	}
	n := int64(0)
	if in.Offset < uint64(f.size) {
		n = min(int64(in.Size), f.size-int64(in.Offset))
	}
	r := &read{unique: in.Unique, f: f, off: int64(in.Offset), n: n}
	if n == 0 || c.nodes.isWhole(f) {
		if c.observed && n > 0 {
			c.link.seen(f.d, r.off, n)
		}
		return c.answer(r, buf)
	}
	c.link.want(r)
	return nil
}

// answer reads what is known to be there.
func (c *child) answer(r *read, buf []byte) error {
	defer c.nodes.release(r.f)
	buf = buf[:outHeaderSize+int(r.n)]
	if r.n > 0 {
		if err := r.f.read(buf[outHeaderSize:], r.off); err != nil {
			return reply(c.fuse, r.unique, c.errno(err), nil)
		}
	}
	return replyIn(c.fuse, r.unique, 0, buf)
}

// finish answers reads that have waited. The buffer is made by the first.
func (c *child) finish() {
	var buf []byte
	for r := range c.link.ready {
		if buf == nil {
			buf = make([]byte, outHeaderSize+maxRead)
		}
		var err error
		if r.errno == 0 {
			if err := c.nodes.openArrived(r.f); err != nil {
				fmt.Fprintf(os.Stderr, "open %s, of which bytes should be there: %v\n", r.f.d, err)
				r.errno = unix.EIO
			}
		}
		if r.errno == 0 {
			err = c.answer(r, buf)
		} else {
			c.nodes.release(r.f)
			err = reply(c.fuse, r.unique, r.errno, nil)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			fmt.Fprintln(os.Stderr, "answer read:", err)
		}
	}
}

// errno is the answer for an error of ours, which it reports if it is none that
// a user of the file system can cause.
func (c *child) errno(err error) unix.Errno {
	if errors.Is(err, fs.ErrNotExist) {
		return unix.ENOENT
	}
	fmt.Fprintln(os.Stderr, err)
	return unix.EIO
}
