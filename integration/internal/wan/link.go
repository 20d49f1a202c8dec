package wan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Addresses of the two ends, the same in every link.
const (
	EdgeAddr  = "10.77.0.2" // the worker's side
	CloudAddr = "10.77.0.1" // the side of registry and proxyd
)

// Config of a link.
type Config struct {
	// Down (cloud to edge) and Up are the rates in Mbit/s of IP bytes; 0 is unlimited.
	Down, Up float64
	// RTT is the propagation delay there and back.
	RTT time.Duration
	// Queue is the drop-tail queue in bandwidth-delay products, at least 64
	// packets; 0 stands for 1.
	Queue float64
	// Loss is the probability that a packet gets lost, 0 to 1.
	Loss float64
	// Cut drops everything: the cable is out.
	Cut bool
}

// Counters of a link since its start or the last Reset.
type Counters struct {
	Down, Up Direction
	// RoundTrips counts connections opened and requests sent after an answer, at
	// most one per 0.75 RTT: the round trips that followed one another.
	RoundTrips int64
}

// Direction are the counters of one direction.
type Direction struct {
	Packets, Bytes int64 // on the wire, IP headers included
	Payload        int64 // bytes of TCP and UDP payload
	Connections    int64 // TCP SYNs
	Turns          int64 // payload that follows payload of the other direction
	Dropped, Lost  int64 // packets: queue overflow or cut, and random loss
	// LateAvg and LateMax tell how late the emulator delivered packets.
	LateAvg, LateMax time.Duration
}

// Link is a running link.
type Link struct {
	// Edge and Cloud are its two ends.
	Edge, Cloud *Namespace

	child *exec.Cmd

	mu   sync.Mutex // guards: ctl (one request at a time), conf
	ctl  *os.File
	enc  *json.Encoder
	dec  *json.Decoder
	conf Config
}

// New makes two namespaces and joins them. Close removes them.
func New(c Config) (_ *Link, err error) {
	if os.Getuid() != 0 {
		return nil, errors.New("link emulation needs root")
	}
	l := &Link{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.Edge, err = newNamespace(EdgeAddr); err != nil {
		return nil, fmt.Errorf("edge namespace: %w", err)
	}
	if l.Cloud, err = newNamespace(CloudAddr); err != nil {
		return nil, fmt.Errorf("cloud namespace: %w", err)
	}
	if err := l.fork(); err != nil {
		return nil, fmt.Errorf("forwarder: %w", err)
	}
	l.Edge.closeTUN()
	l.Cloud.closeTUN()
	return l, l.Set(c)
}

// fork starts the forwarder on the two TUN devices.
func (l *Link) fork() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	defer theirs.Close()
	l.ctl, l.enc, l.dec = ours, json.NewEncoder(ours), json.NewDecoder(ours)

	l.child = exec.Command("/proc/self/exe")
	l.child.Args = []string{childName}
	l.child.Stderr = os.Stderr
	l.child.ExtraFiles = []*os.File{l.Edge.tun, l.Cloud.tun, theirs}
	// A ^C at the terminal is for the caller, which needs the link to clean up.
	l.child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return l.child.Start()
}

// request is one line to the forwarder; it answers each with its counters.
type request struct {
	Set   *Config
	Reset bool
}

func (l *Link) ask(r request) (Counters, error) {
	var c Counters
	if err := l.enc.Encode(r); err != nil {
		return c, fmt.Errorf("ask link forwarder: %w", err)
	}
	if err := l.dec.Decode(&c); err != nil {
		return c, fmt.Errorf("answer of link forwarder: %w", err)
	}
	return c, nil
}

// Set changes the link while it runs.
func (l *Link) Set(c Config) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.ask(request{Set: &c})
	if err == nil {
		l.conf = c
	}
	return err
}

// Cut takes the cable out, or plugs it in again.
func (l *Link) Cut(out bool) error {
	c := l.Config()
	c.Cut = out
	return l.Set(c)
}

// Config returns what was set last.
func (l *Link) Config() Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conf
}

// Counters reads the counters.
func (l *Link) Counters() (Counters, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ask(request{})
}

// Quiet waits until nothing goes over the link any more, for 20 s or so: what a node does
// when it has started is not part of a pull.
func (l *Link) Quiet(ctx context.Context) error {
	const least, times = 200 * time.Millisecond, 50
	pause := time.NewTicker(least + 2*l.Config().RTT)
	defer pause.Stop()
	before := int64(-1)
	for range times {
		c, err := l.Counters()
		if err != nil {
			return err
		}
		now := c.Down.Bytes + c.Up.Bytes
		if now == before {
			return nil
		}
		before = now
		select {
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Reset sets the counters to zero.
func (l *Link) Reset() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.ask(request{Reset: true})
	return err
}

// Close stops forwarding and lets the namespaces go.
func (l *Link) Close() error {
	var err error
	if l.ctl != nil {
		err = l.ctl.Close() // the child ends when its control socket does
	}
	if l.child != nil && l.child.Process != nil {
		err = errors.Join(err, l.child.Wait())
	}
	for _, n := range []*Namespace{l.Edge, l.Cloud} {
		if n != nil {
			n.close()
		}
	}
	return err
}
