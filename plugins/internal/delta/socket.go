package delta

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// receiveBuffer returns a net.Dialer.Control that sets the receive buffer, which
// must happen before the handshake, where the window scale is agreed on.
func receiveBuffer(size int) func(network, address string, c syscall.RawConn) error {
	if size == 0 {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			// FORCE goes beyond net.core.rmem_max, as far as we are privileged.
			if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size); err != nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, size)
			}
		})
		if cerr != nil {
			return cerr
		}
		return err
	}
}
