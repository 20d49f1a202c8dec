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

// gauge tells what a connection is known to carry. It belongs to who writes on it.
type gauge struct {
	pace  *pacer
	tcp   tcpLink
	meter meter
}

// newGauge is nil for a request without a connection.
func newGauge(ctx context.Context, p *pacer) *gauge {
	l, ok := linkOf(ctx)
	if !ok {
		return nil
	}
	return &gauge{pace: p, tcp: l}
}

// rate is in bytes a second; 0 if it is not known now.
func (g *gauge) rate() float64 {
	if g.pace.link != nil {
		return g.pace.carries()
	}
	return g.meter.look(time.Now(), g.tcp.sent)
}

// sent tells how many bytes have arrived of those that a connection was given, and whether
// others wait to be sent because it carries no more: not because it begins slowly.
func (l tcpLink) sent() (arrived uint64, waiting bool) {
	// If it fails, nothing is waiting, and nothing is measured.
	_ = l.raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			arrived, waiting = info.Bytes_acked, info.Notsent_bytes > 0 && info.Snd_cwnd >= info.Snd_ssthresh
		}
	})
	return arrived, waiting
}

// meter measures what a link carries. What is written says nothing of that: the kernel
// takes a megabyte or two at once, and a stream that waits for patches leaves the link idle.
type meter struct {
	from  uint64 // bytes that had arrived when the measurement began
	began time.Time
	under bool // a measurement is under way
}

// look is called before each write. link tells how many bytes have arrived since the
// connection began, and whether others still wait to be sent: then the link was busy since
// the write before. It returns the rate in bytes a second once in a while, else 0.
func (m *meter) look(now time.Time, link func() (arrived uint64, waiting bool)) float64 {
	const enough, long = 256 << 10, 5 * time.Millisecond
	arrived, waiting := link()
	if !waiting {
		m.under = false
		return 0
	}
	n, took := arrived-m.from, now.Sub(m.began)
	if m.under && (n < enough || took < long) {
		return 0
	}
	rate := 0.0
	if m.under {
		rate = float64(n) / took.Seconds()
	}
	m.from, m.began, m.under = arrived, now, true
	return rate
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
