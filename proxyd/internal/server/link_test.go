package server

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// TestWatch: what a client has not read yet waits, what it has read has arrived.
func TestWatch(t *testing.T) {
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
	look := watch(WithConn(context.Background(), c))
	now := time.Now()
	if at, arrived, waiting := look(now); at != now || arrived > 1 || waiting { // the handshake counts as a byte
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
	_, before, waiting := look(now)
	if !waiting || before >= uint64(n) {
		t.Errorf("%d of %d bytes have arrived at a client that reads nothing, waiting %v", before, n, waiting)
	}
	if _, err := io.ReadFull(client, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		_, arrived, waiting := look(now)
		if !waiting && arrived >= uint64(n) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d bytes have arrived at a client that read all, waiting %v", arrived, n, waiting)
		}
	}
	if watch(context.Background()) != nil {
		t.Error("a request without a connection is watched")
	}
}
