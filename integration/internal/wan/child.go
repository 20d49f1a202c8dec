package wan

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// childName is argv[0] of the forwarder.
const childName = "wan-forwarder"

// init takes over the process if it was started as the forwarder: the one way to
// re-exec a test binary, whose main is not ours.
func init() {
	if os.Args[0] != childName {
		return
	}
	if err := forward(3, 4, os.NewFile(5, "control")); err != nil {
		fmt.Fprintln(os.Stderr, childName+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// forward forwards between two TUN devices until the control socket ends.
func forward(edge, cloud int, ctl *os.File) error {
	// The two forwarding threads never yield; leave some for the rest.
	runtime.GOMAXPROCS(4)
	for _, fd := range []int{edge, cloud} {
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
	}
	sh := &shared{}
	up := newDirection(edge, cloud, dirUp, sh)
	down := newDirection(cloud, edge, dirDown, sh)
	set := func(c Config) {
		sh.rtt.Store(int64(c.RTT))
		up.p.Store(newParams(c, c.Up))
		down.p.Store(newParams(c, c.Down))
	}
	set(Config{})
	go up.run()
	go down.run()
	enc, dec := json.NewEncoder(ctl), json.NewDecoder(ctl)
	for {
		var r request
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if r.Set != nil {
			set(*r.Set)
		}
		if r.Reset {
			up.st.reset()
			down.st.reset()
			sh.trips.Store(0)
			sh.lastTrip.Store(0)
			sh.lastDir.Store(0)
		}
		c := Counters{Down: down.st.read(), Up: up.st.read(), RoundTrips: sh.trips.Load()}
		if err := enc.Encode(c); err != nil {
			return err
		}
	}
}

// stats of one direction: written by its thread, read by the control loop.
type stats struct {
	packets, bytes, payload atomic.Int64
	syns, turns             atomic.Int64
	dropped, lost           atomic.Int64
	lateSum, lateMax, lateN atomic.Int64
}

func (s *stats) all() []*atomic.Int64 {
	return []*atomic.Int64{
		&s.packets, &s.bytes, &s.payload, &s.syns, &s.turns, &s.dropped, &s.lost, &s.lateSum, &s.lateMax, &s.lateN,
	}
}

func (s *stats) reset() {
	for _, c := range s.all() {
		c.Store(0)
	}
}

func (s *stats) read() Direction {
	d := Direction{
		Packets: s.packets.Load(), Bytes: s.bytes.Load(), Payload: s.payload.Load(),
		Connections: s.syns.Load(), Turns: s.turns.Load(), Dropped: s.dropped.Load(), Lost: s.lost.Load(),
		LateMax: duration(s.lateMax.Load()),
	}
	if n := s.lateN.Load(); n > 0 {
		d.LateAvg = duration(s.lateSum.Load() / n)
	}
	return d
}
