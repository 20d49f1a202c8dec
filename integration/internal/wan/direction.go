package wan

import (
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	bufBig   = 65536 + 128 // a segmentation-offload packet with its headers
	bufSmall = 2048        // a packet of the MTU
	maxFree  = 4096        // buffers kept per size
	minQueue = 64 * mtu    // bytes
	// quantum is the serialization time to which offload packets are cut, so that
	// at low rates the receiver sees packets paced as on a real link.
	quantum = 500 * time.Microsecond
)

// params of one direction; replaced as a whole, read by its thread.
type params struct {
	rate  float64 // bytes per second; 0 = unlimited
	delay int64   // ns
	queue float64 // bytes of backlog allowed
	loss  float64 // probability per packet
	chunk int     // most payload bytes of a forwarded piece
	cut   bool
}

func newParams(c Config, mbit float64) *params {
	p := &params{rate: mbit * 1e6 / 8, delay: int64(c.RTT / 2), loss: c.Loss, chunk: 1 << 20, cut: c.Cut}
	if p.rate > 0 {
		q := c.Queue
		if q == 0 {
			q = 1
		}
		p.queue = max(q*p.rate*c.RTT.Seconds(), minQueue)
		p.chunk = int(p.rate * quantum.Seconds())
	}
	return p
}

const (
	dirUp   = 1
	dirDown = 2
)

// shared by both directions.
type shared struct {
	rtt      atomic.Int64
	lastDir  atomic.Int32 // of the last payload seen
	trips    atomic.Int64
	lastTrip atomic.Int64 // when the last one was counted
}

// trip counts a round trip that starts at t, unless it runs beside the one before.
func (s *shared) trip(t int64) {
	if last := s.lastTrip.Load(); last == 0 || t-last >= s.rtt.Load()*3/4 {
		s.lastTrip.Store(t)
		s.trips.Add(1)
	}
}

// item is a packet on its way.
type item struct {
	buf []byte // vnet header and IP packet
	at  int64  // delivery time
}

// direction is one direction of the link. All but p and st belong to its thread.
type direction struct {
	in, out int
	id      int32
	sh      *shared
	p       atomic.Pointer[params]
	st      stats

	busy    float64 // ns: when the last packet admitted has left the queue
	ring    []item
	head, n int
	free    [2][][]byte
	rng     *rand.Rand
	rd, cut []byte
}

func newDirection(in, out int, id int32, sh *shared) *direction {
	return &direction{
		in: in, out: out, id: id, sh: sh, ring: make([]item, 1024),
		rng: rand.New(rand.NewPCG(1, uint64(id))), // the same losses in every run
		rd:  make([]byte, bufBig), cut: make([]byte, bufBig),
	}
}

func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // the clock always exists
	}
	return ts.Nano()
}

func duration(ns int64) time.Duration { return time.Duration(ns) }

// admit takes a packet that is segs packets of wire bytes together on the link.
// b is not retained.
func (d *direction) admit(p *params, t int64, b []byte, wire, segs, payload int, syn bool) {
	if p.cut {
		d.st.dropped.Add(int64(segs))
		return
	}
	if p.loss > 0 && d.rng.Float64() < p.loss {
		d.st.lost.Add(int64(segs))
		return
	}
	d.busy = max(d.busy, float64(t))
	if p.rate > 0 {
		backlog := (d.busy - float64(t)) * p.rate / 1e9
		if backlog > 0 && backlog+float64(wire) > p.queue {
			d.st.dropped.Add(int64(segs))
			return
		}
		d.busy += float64(wire) / p.rate * 1e9
	}
	d.st.packets.Add(int64(segs))
	d.st.bytes.Add(int64(wire))
	d.count(t, payload, syn)
	c := d.get(len(b))
	copy(c, b)
	d.push(item{c, int64(d.busy) + p.delay})
}

func (d *direction) count(t int64, payload int, syn bool) {
	if syn {
		d.st.syns.Add(1)
		if d.id == dirUp {
			d.sh.trip(t)
		}
	}
	if payload == 0 {
		return
	}
	d.st.payload.Add(int64(payload))
	if d.sh.lastDir.Swap(d.id) != d.id {
		d.st.turns.Add(1)
		if d.id == dirUp {
			d.sh.trip(t)
		}
	}
}

func (d *direction) get(n int) []byte {
	k, size := 0, bufSmall
	if n > bufSmall {
		k, size = 1, bufBig
	}
	if l := len(d.free[k]); l > 0 {
		b := d.free[k][l-1]
		d.free[k] = d.free[k][:l-1]
		return b[:n]
	}
	return make([]byte, n, size)
}

func (d *direction) put(b []byte) {
	k := 0
	if cap(b) > bufSmall {
		k = 1
	}
	if len(d.free[k]) < maxFree {
		d.free[k] = append(d.free[k], b)
	}
}

func (d *direction) push(it item) {
	if d.n == len(d.ring) {
		r := make([]item, 2*len(d.ring))
		for i := range d.n {
			r[i] = d.ring[(d.head+i)%len(d.ring)]
		}
		d.ring, d.head = r, 0
	}
	d.ring[(d.head+d.n)%len(d.ring)] = it
	d.n++
}

// run forwards until the device is gone.
func (d *direction) run() {
	runtime.LockOSThread()
	// Both are for precision only; without them the link still works.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -15)
	poll := []unix.PollFd{{Fd: int32(d.in), Events: unix.POLLIN}}
	for {
		idle, gone := d.receive()
		if gone {
			return
		}
		d.deliver()
		if !idle {
			continue
		}
		var wait *unix.Timespec
		if d.n > 0 {
			w := d.ring[d.head].at - now()
			if w < 5000 { // not worth a sleep
				continue
			}
			ts := unix.NsecToTimespec(w)
			wait = &ts
		}
		_, _ = unix.Ppoll(poll, wait, nil) // an interrupted wait is only a short one
	}
}

// receive admits up to 64 packets, so that a flood does not delay deliveries.
func (d *direction) receive() (idle, gone bool) {
	p := d.p.Load()
	for range 64 {
		n, e := rawRead(d.in, d.rd)
		if e == syscall.EAGAIN || e == syscall.EINTR {
			return true, false
		}
		if e != 0 {
			return false, true
		}
		if n > vnetLen {
			d.packet(p, now(), d.rd[:n])
		}
	}
	return false, false
}

func (d *direction) deliver() {
	t := now()
	for d.n > 0 {
		it := &d.ring[d.head]
		if it.at > t {
			if t = now(); it.at > t {
				return
			}
		}
		late := t - it.at
		d.st.lateSum.Add(late)
		d.st.lateN.Add(1)
		if late > d.st.lateMax.Load() {
			d.st.lateMax.Store(late)
		}
		rawWrite(d.out, it.buf)
		d.put(it.buf[:cap(it.buf)])
		it.buf = nil
		d.head = (d.head + 1) % len(d.ring)
		d.n--
	}
}

// rawRead and rawWrite do not tell the Go scheduler: the descriptors never block,
// and a hand-over of the processor per packet would cost more than the packet.

func rawRead(fd int, b []byte) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

// rawWrite drops the packet if the device refuses it, as a network does.
func rawWrite(fd int, b []byte) {
	_, _, _ = syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
}
