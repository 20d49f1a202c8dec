package lazyfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// The protocol between parent and child, on a unix socket on which the child
// listens: frames of one size, any number of ranges in flight. The first frame of
// a connection is the child's hello, with the descriptor of /dev/fuse.
const (
	frameSize = 64

	// linkVersion is that of the frames. A parent replaces a child that speaks
	// another one; the hello itself must stay as it is.
	linkVersion = 2

	socketName = "child.sock"
	logName    = "child.log"
)

type frameType uint32

const (
	frameHello  frameType = iota + 1 // child: code version, id pid, digest of the binary, off device, n 1 if resend works
	frameRange                       // child: bytes [off, off+n) of digest are wanted; id names the request
	frameCancel                      // child: nobody waits for id any more
	frameDone                        // parent: id is there (code 0), or an errno
	frameQuit                        // parent: another child takes over
	frameSeen                        // child: bytes [off, off+n) of digest were read; n is 0 if it was opened
)

type frame struct {
	typ    frameType
	code   uint32
	id     uint64
	digest toc.Digest
	off, n int64
}

func (f *frame) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(f.typ))
	b = binary.LittleEndian.AppendUint32(b, f.code)
	b = binary.LittleEndian.AppendUint64(b, f.id)
	b = append(b, f.digest[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(f.off))
	return binary.LittleEndian.AppendUint64(b, uint64(f.n))
}

func parseFrame(b *[frameSize]byte) frame {
	return frame{
		typ:    frameType(binary.LittleEndian.Uint32(b[0:])),
		code:   binary.LittleEndian.Uint32(b[4:]),
		id:     binary.LittleEndian.Uint64(b[8:]),
		digest: toc.Digest(b[16:48]),
		off:    int64(binary.LittleEndian.Uint64(b[48:])),
		n:      int64(binary.LittleEndian.Uint64(b[56:])),
	}
}

func readFrame(r io.Reader) (frame, error) {
	var b [frameSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return frame{}, err
	}
	return parseFrame(&b), nil
}

// sendHello sends the first frame of a connection.
func sendHello(c *net.UnixConn, hello frame, fuse int) error {
	_, _, err := c.WriteMsgUnix(hello.append(nil), unix.UnixRights(fuse), nil)
	return err
}

// readHello is the other end of sendHello.
func readHello(c *net.UnixConn) (hello frame, fuse int, err error) {
	var b [frameSize]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, on, _, _, err := c.ReadMsgUnix(b[:], oob)
	if err != nil {
		return frame{}, -1, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil {
		return frame{}, -1, err
	}
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil && len(fds) == 1 {
			unix.CloseOnExec(fds[0])
			fuse = fds[0]
		}
	}
	hello = parseFrame(&b)
	if n != frameSize || fuse <= 0 || hello.typ != frameHello {
		if fuse > 0 {
			err = unix.Close(fuse)
		}
		return frame{}, -1, errors.Join(errors.New("the child did not say hello"), err)
	}
	return hello, fuse, nil
}

// viaDir makes a path for the address of a socket, which may have 107 bytes only,
// by way of a descriptor of its directory. Call done when it has been used.
func viaDir(path string) (short string, done func(), err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	short = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	return short, func() { _ = dir.Close() }, nil
}

func dial(path string) (*net.UnixConn, error) {
	short, done, err := viaDir(path)
	if err != nil {
		return nil, err
	}
	defer done()
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: short, Net: "unix"})
}

// listen makes a new socket in the place of an old one, and returns it as a file
// that a child can inherit.
func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	short, done, err := viaDir(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	return f, errors.Join(err, l.Close())
}
