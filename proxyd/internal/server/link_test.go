package server

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// Only a link that is busy all the time tells what it carries.
func TestMeter(t *testing.T) {
	began := time.Now()
	type look struct {
		at      time.Duration
		arrived uint64
		waiting bool
		want    float64
	}
	for name, looks := range map[string][]look{
		"busy":                {{0, 100, true, 0}, {50 * time.Millisecond, 300_100, true, 6e6}, {100 * time.Millisecond, 800_100, true, 10e6}},
		"few bytes":           {{0, 0, true, 0}, {50 * time.Millisecond, 1000, true, 0}, {100 * time.Millisecond, 400_000, true, 4e6}},
		"taken by the kernel": {{0, 0, true, 0}, {time.Microsecond, 2 << 20, true, 0}},
		"idle at times":       {{0, 0, true, 0}, {50 * time.Millisecond, 300_000, false, 0}, {100 * time.Millisecond, 600_000, true, 0}, {150 * time.Millisecond, 900_000, true, 6e6}},
		"always idle":         {{0, 0, false, 0}, {50 * time.Millisecond, 300_000, false, 0}, {100 * time.Millisecond, 600_000, false, 0}},
	} {
		var m meter
		for i, l := range looks {
			if got := m.look(began.Add(l.at), func() (uint64, bool) { return l.arrived, l.waiting }); got != l.want {
				t.Errorf("%s, look %d: got %g, want %g", name, i, got, l.want)
			}
		}
	}
}

// A connection that BBR steers is known when it has found its rate.
func TestPacerCarries(t *testing.T) {
	for _, tt := range []struct {
		p    pacer
		want float64
	}{
		{pacer{rate: 5e6}, 0}, {pacer{rate: 5e6, settled: true}, 5e6}, {pacer{rate: 5e6, limited: true}, 5e6},
	} {
		if got := tt.p.carries(); got != tt.want {
			t.Errorf("%+v carries %g, want %g", tt.p, got, tt.want)
		}
	}
}

// TestSent: what a client has not read yet waits, what it has read has arrived.
func TestSent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	link, ok := linkOf(WithConn(context.Background(), c))
	if !ok {
		t.Fatal("the connection is not found")
	}
	if arrived, waiting := link.sent(); arrived > 1 || waiting { // the handshake counts as a byte
		t.Errorf("a new connection: %d bytes have arrived, waiting %v", arrived, waiting)
	}
	sent := make(chan int)
	go func() {
		n := 0
		for b := make([]byte, 64<<10); ; { // more than the buffers take
			_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			k, err := c.Write(b)
			if n += k; err != nil {
				sent <- n
				return
			}
		}
	}()
	n := <-sent
	before, _ := link.sent() // it may still begin slowly
	if before >= uint64(n) {
		t.Errorf("%d of %d bytes have arrived at a client that reads nothing", before, n)
	}
	if _, err := io.ReadFull(client, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		arrived, waiting := link.sent()
		if !waiting && arrived >= uint64(n) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d bytes have arrived at a client that read all, waiting %v", arrived, n, waiting)
		}
	}
	if newGauge(context.Background(), &pacer{}) != nil {
		t.Error("a request without a connection has a gauge")
	}
}
