package main

import (
	"net"
	"os"
	"path/filepath"
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

// Frames of a version before are of no use, and nothing else would ever remove them.
func TestServeRemovesStaleFrames(t *testing.T) {
	data := t.TempDir()
	stale, good := filepath.Join(data, "blobs/frames/1/sha256/aa/bb"), filepath.Join(data, "blobs/frames/2/sha256/aa/bb")
	for _, f := range []string{stale, good} {
		if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, []byte("frames"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	startProxyd(t, "", "--data-dir", data)
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("frames of a version before: %v", err)
	}
	if _, err := os.Stat(good); err != nil {
		t.Errorf("frames of this version: %v", err)
	}
}
