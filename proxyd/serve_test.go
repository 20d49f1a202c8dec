package main

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestConnectionsAreTuned: what is urgent must not wait for megabytes in the kernel.
func TestConnectionsAreTuned(t *testing.T) {
	l, err := listen(t.Context(), "127.0.0.1:0")
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
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		// Sockets of MPTCP tell what was set, and do not heed it.
		protocol, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err != nil || protocol != unix.IPPROTO_TCP {
			t.Errorf("got protocol %d and %v, want TCP", protocol, err)
		}
		got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT)
		if err != nil || got != unsent {
			t.Errorf("got a limit of %d unsent bytes and %v, want %d", got, err, unsent)
		}
	}); err != nil {
		t.Fatal(err)
	}
}
