package server

import (
	"context"
	"math"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pacer keeps the queue on the way to a client short, through which what is urgent has to go.
//
// BBR does that by itself once it has found the rate of the way. Until then it sends
// at almost three times the rate that it has seen, and it takes no sample for the end
// of its search while the sender has nothing more to send (tcp_bbr.c: is_app_limited).
// A stream whose frames are made as it goes often has nothing for a moment: then BBR
// searches for ever, fills each queue on the way to its end, and loses what is too
// much. The pacer ends the search in its place: if packets queue while the rate does
// not grow, it has the kernel send no faster than what arrives.
type pacer struct {
	link    link
	looked  time.Time
	rate    float64   // of the link, lately
	settled bool      // BBR takes that for what the way carries
	best    float64   // rate, when it last grew
	grew    time.Time // when that was
	limited bool
	buffer  int // bytes that may wait in the kernel, 0: as the listener has it
}

// link is a connection as the kernel sees it.
type link interface {
	// state is false if BBR does not steer the connection.
	state() (linkState, bool)
	// limit has the kernel send no more than so many bytes a second.
	limit(rate uint32)
	// search has BBR look for the rate of the way anew.
	search()
	// hold has the kernel take no more than so many bytes that cannot be sent yet.
	hold(bytes int)
}

type linkState struct {
	rate      float64 // that has arrived lately at best, bytes a second
	rtt, best time.Duration
	searching bool
	carried   uint64 // bytes that have arrived
}

// unlimited takes a limit away.
const unlimited = math.MaxUint32

// What waits in the kernel is for pauses of the process: a share of a second of what
// the connection carries. What becomes urgent comes after it.
const (
	bufferTime           = 30 * time.Millisecond
	minBuffer, maxBuffer = 128 << 10, 1 << 20
)

// glance is how often a stream looks at its connection.
const glance = 20 * time.Millisecond

// look adapts the limit. It is called often.
func (p *pacer) look(now time.Time) {
	if p.link == nil || now.Sub(p.looked) < glance {
		return
	}
	p.looked = now
	s, ok := p.link.state()
	if !ok {
		p.link = nil
		return
	}
	p.rate, p.settled = s.rate, !s.searching
	if n := max(minBuffer, min(int(s.rate*bufferTime.Seconds()), maxBuffer)); n > p.buffer*5/4 {
		p.buffer = n
		p.link.hold(n)
	}
	switch {
	case !s.searching:
		if p.limited {
			p.limited = false
			p.link.limit(unlimited)
		}
		return
	case s.rate > p.best*5/4: // as BBR has it
		p.best, p.grew = s.rate, now
	}
	queue := s.rtt - s.best
	full := queue > max(s.best/5, 4*time.Millisecond)
	if !p.limited && (!full || now.Sub(p.grew) < 2*s.best) {
		return
	}
	p.limited = true
	switch calm := queue < max(s.best/12, 2*time.Millisecond); {
	case calm: // there may be more room
		p.link.limit(rate32(s.rate * 5 / 4))
	case full: // until the queue has gone
		p.link.limit(rate32(s.rate * 3 / 4))
	default:
		p.link.limit(rate32(s.rate))
	}
}

// carries is what the connection is known to carry, in bytes a second; 0 while BBR searches
// for that and has not been ended.
func (p *pacer) carries() float64 {
	if p.settled || p.limited {
		return p.rate
	}
	return 0
}

// search has BBR find the rate of the way again. On one that others were using when the
// connection was new, it may have taken its share for all there is; then it asks for a
// quarter more in every eighth round trip, which takes seconds. And if a full queue made it
// lose much, it stays for 48 round trips at what came through (tcp_bbr.c:
// bbr_lt_bw_sampling).
func (p *pacer) search() {
	if p.link == nil || !p.settled {
		return
	}
	p.link.search()
	p.best, p.grew, p.settled = 0, time.Now(), false
}

func rate32(r float64) uint32 { return uint32(max(64<<10, min(r, unlimited-1))) }

// newPacer paces the connection that a request came on.
func newPacer(ctx context.Context) *pacer {
	if l, ok := linkOf(ctx); ok {
		return &pacer{link: l}
	}
	return &pacer{}
}

// linkOf is the connection that a request came on.
func linkOf(ctx context.Context) (tcpLink, bool) {
	c, ok := ctx.Value(connKey{}).(syscall.Conn)
	if !ok {
		return tcpLink{}, false
	}
	raw, err := c.SyscallConn()
	return tcpLink{raw}, err == nil
}

// remembers tells whether the connection that a request came on keeps its rate when it
// is idle: with BBR it does, others begin anew (tcp.h: tcp_slow_start_after_idle_check).
func remembers(ctx context.Context) bool {
	l, ok := linkOf(ctx)
	if ok {
		_, ok = l.state()
	}
	return ok
}

// end takes the limit away: the connection goes on to other requests.
func (p *pacer) end() {
	if p.link != nil && p.limited {
		p.limited = false
		p.link.limit(unlimited)
	}
}

// tcpLink is a connection of the kernel's.
type tcpLink struct{ raw syscall.RawConn }

func (l tcpLink) state() (s linkState, ok bool) {
	const searching = 320 // 1.25 of 256: the highest gain that BBR has later
	err := l.raw.Control(func(fd uintptr) {
		name, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		if err != nil || unix.ByteSliceToString([]byte(name)) != "bbr" {
			return
		}
		bbr, err := unix.GetsockoptTCPCCBBRInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_CC_INFO)
		if err != nil {
			return
		}
		tcp, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		s = linkState{
			rate:      float64(uint64(bbr.Bw_hi)<<32 | uint64(bbr.Bw_lo)),
			rtt:       time.Duration(tcp.Rtt) * time.Microsecond,
			best:      time.Duration(bbr.Min_rtt) * time.Microsecond,
			searching: bbr.Pacing_gain > searching,
			carried:   tcp.Bytes_acked,
		}
		ok = true
	})
	return s, ok && err == nil
}

func (l tcpLink) hold(bytes int) {
	// If it fails, all is as it was.
	_ = l.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
	})
}

// search takes BBR away and gives it back: it begins anew then, with the window that the
// connection has (tcp_cong.c: tcp_reinit_congestion_control).
func (l tcpLink) search() {
	_ = l.raw.Control(func(fd uintptr) {
		for _, name := range []string{"reno", "bbr"} {
			// If the first fails, all is as it was; the second was allowed before.
			_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
		}
	})
}

func (l tcpLink) limit(rate uint32) {
	_ = l.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, int(rate))
	})
}
