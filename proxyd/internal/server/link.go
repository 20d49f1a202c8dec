package server

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// near is the round trip time of a local network, in microseconds.
	near = 2000
	// nearRate is what a local network is expected to carry, in bytes a second.
	nearRate = 125e6
)

type connKey struct{}

// WithConn is for http.Server.ConnContext: it lets handlers look at the
// connection that they answer on.
func WithConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn() // of TLS
	}
	return context.WithValue(ctx, connKey{}, c)
}

// linkRate is what the way to the client is expected to carry before anything
// was measured, in bytes a second; 0 if nothing is known.
func linkRate(ctx context.Context) float64 {
	c, ok := ctx.Value(connKey{}).(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	var rtt uint32
	err = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			rtt = info.Rtt
		}
	})
	if err != nil || rtt == 0 || rtt > near {
		return 0
	}
	return nearRate
}
