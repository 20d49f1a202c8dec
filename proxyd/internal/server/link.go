package server

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// near is the round trip time of a local network.
	near = 2 * time.Millisecond
	// nearRate is what a local network is expected to carry, in bytes a second.
	nearRate = 125e6
	// enough bytes on such a way tell what it carries.
	enough = 128 << 10
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

// linkRate is what the way to the client is expected to carry, in bytes a second, and
// whether it has carried that before; 0 if nothing is known. What a connection over a
// long way has carried is no more than it was given yet.
func linkRate(ctx context.Context) (rate float64, known bool) {
	l, ok := linkOf(ctx)
	if !ok {
		return 0, false
	}
	rtt, err := l.rtt()
	if err != nil || rtt == 0 || rtt > near {
		return 0, false
	}
	if s, ok := l.state(); ok && s.rate > 0 && s.carried > enough {
		return s.rate, true
	}
	return nearRate, false
}

// watch is for delta.Patcher.Link; nil if the kernel does not tell.
func watch(ctx context.Context) func(time.Time) (time.Time, uint64, bool) {
	l, ok := linkOf(ctx)
	if !ok {
		return nil
	}
	return func(now time.Time) (_ time.Time, arrived uint64, waiting bool) {
		// If it fails, nothing is waiting, and nothing is measured.
		_ = l.raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				arrived, waiting = info.Bytes_acked, info.Notsent_bytes > 0
			}
		})
		return now, arrived, waiting
	}
}

// rtt is the shortest that the kernel has seen: others have queues in them.
func (l tcpLink) rtt() (rtt time.Duration, err error) {
	cerr := l.raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			rtt = time.Duration(info.Min_rtt) * time.Microsecond
		}
	})
	return rtt, errors.Join(err, cerr)
}
