package wan

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func newLink(t *testing.T, c Config) *Link {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// serve runs fn for each connection to port 9000 of the cloud.
func serve(t *testing.T, l *Link, fn func(net.Conn)) {
	t.Helper()
	ln, err := l.Cloud.Listen(t.Context(), CloudAddr+":9000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fn(c)
			}()
		}
	}()
}

func dial(t *testing.T, l *Link) net.Conn {
	t.Helper()
	c, err := l.Edge.Dial(t.Context(), "tcp", CloudAddr+":9000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestLinkRoundTripTime(t *testing.T) {
	for _, rtt := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond} {
		t.Run(rtt.String(), func(t *testing.T) {
			l := newLink(t, Config{Down: 100, Up: 100, RTT: rtt})
			serve(t, l, func(c net.Conn) { _, _ = io.Copy(c, c) })
			c := dial(t, l)
			var took []time.Duration
			for range 15 {
				b := []byte{1}
				start := time.Now()
				if _, err := c.Write(b); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, b); err != nil {
					t.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			// The median: a busy machine delays single packets.
			if got := took[len(took)/2]; got < rtt || got > rtt+time.Millisecond {
				t.Errorf("got a round trip of %v, want %v and less than 1 ms more (all: %v)", got, rtt, took)
			}
			n, err := l.Counters()
			if err != nil {
				t.Fatal(err)
			}
			if n.RoundTrips != 16 || n.Up.Connections != 1 || n.Up.Turns != 15 || n.Down.Turns != 15 {
				t.Errorf("got %+v, want 16 round trips, one of them for the connection", n)
			}
		})
	}
}

func TestLinkRate(t *testing.T) {
	const size = 12 << 20
	for _, mbit := range []float64{20, 100} {
		l := newLink(t, Config{Down: mbit, Up: mbit, RTT: 20 * time.Millisecond})
		serve(t, l, func(c net.Conn) { _, _ = c.Write(make([]byte, size)) })
		c := dial(t, l)
		// The steady state: from the first MiB on.
		if _, err := io.CopyN(io.Discard, c, 1<<20); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		n, err := io.Copy(io.Discard, c)
		if err != nil {
			t.Fatal(err)
		}
		// 1448 bytes of payload in each packet of 1500.
		got := float64(n) * 8 * 1500 / 1448 / 1e6 / time.Since(start).Seconds()
		if got < mbit*0.95 || got > mbit*1.05 {
			t.Errorf("got %.1f Mbit/s, want %v within 5 %%", got, mbit)
		}
		k, err := l.Counters()
		if err != nil {
			t.Fatal(err)
		}
		// Without losses everything passes once; the queue may drop some.
		if k.Down.Payload < size || k.Down.Payload > size*102/100 {
			t.Errorf("got %d payload bytes counted, want %d", k.Down.Payload, size)
		}
	}
}

func TestLinkCut(t *testing.T) {
	l := newLink(t, Config{Down: 100, Up: 100, RTT: 2 * time.Millisecond})
	serve(t, l, func(c net.Conn) { _, _ = io.Copy(c, c) })
	c := dial(t, l)
	if err := l.Cut(true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte{7}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := c.Read(b); err == nil {
		t.Fatal("a byte came through a link that is cut")
	}
	if err := l.Cut(false); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || b[0] != 7 {
		t.Fatalf("got %v, %v after the link came back, want the byte", b, err)
	}
}

func TestLinkLoss(t *testing.T) {
	l := newLink(t, Config{Down: 100, Up: 100, RTT: 5 * time.Millisecond, Loss: 0.01})
	const size = 4 << 20
	serve(t, l, func(c net.Conn) { _, _ = c.Write(make([]byte, size)) })
	n, err := io.Copy(io.Discard, dial(t, l))
	if err != nil || n != size {
		t.Fatalf("got %d bytes, %v, want all in spite of losses", n, err)
	}
	k, err := l.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if r := float64(k.Down.Lost) / float64(k.Down.Packets+k.Down.Lost); r < 0.004 || r > 0.02 {
		t.Errorf("got %.3f of the packets lost, want about 0.01", r)
	}
}

func TestNamespaceStartsCommandsInside(t *testing.T) {
	l := newLink(t, Config{})
	c := exec.CommandContext(t.Context(), "cat", "/proc/net/dev")
	var out strings.Builder
	c.Stdout = &out
	if err := l.Edge.Run(c); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), device) {
		t.Errorf("got interfaces %q, want %s among them", out.String(), device)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	out.Reset()
	c = exec.CommandContext(ctx, "nsenter", "--net="+l.Edge.Path(), "cat", "/proc/net/dev")
	c.Stdout = &out
	if err := c.Run(); err != nil || !strings.Contains(out.String(), device) {
		t.Errorf("nsenter: got %v, %q, want %s in the list", err, out.String(), device)
	}
}
