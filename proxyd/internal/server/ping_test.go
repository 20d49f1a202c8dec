package server

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Connections that begin anew after each pause are not filled.
func TestPingFills(t *testing.T) {
	const fill = 100_000
	for congestion, want := range map[string]int{"bbr": fill, "reno": 0} {
		t.Run(congestion, func(t *testing.T) {
			s := New(Config{Limits: DefaultLimits(), Metrics: NewMetrics(), Log: slog.New(slog.DiscardHandler)})
			srv := httptest.NewUnstartedServer(s)
			var steered error
			srv.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
				raw, err := c.(syscall.Conn).SyscallConn()
				if err == nil {
					err = raw.Control(func(fd uintptr) {
						steered = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
					})
				}
				if err != nil {
					t.Error(err)
				}
				return WithConn(ctx, c)
			}
			srv.Start()
			defer srv.Close()
			get := func(query string) (status int, body []byte) {
				resp, err := http.Get(srv.URL + wire.RoutePing + query)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return resp.StatusCode, b
			}
			_, plain := get("")
			if steered != nil {
				t.Skipf("the kernel has no %s: %v", congestion, steered)
			}
			status, filled := get("?fill=" + strconv.Itoa(fill))
			if got := len(filled) - len(plain); got != want || status != http.StatusOK {
				t.Errorf("got %d bytes more (status %d), want %d", got, status, want)
			}
			if !bytes.Equal(bytes.TrimSpace(filled), bytes.TrimSpace(plain)) {
				t.Errorf("got %q, want %q and space", bytes.TrimSpace(filled), plain)
			}
			for _, bad := range []string{"-1", "x", strconv.Itoa(wire.MaxFill + 1)} {
				if status, _ := get("?fill=" + bad); status != http.StatusBadRequest {
					t.Errorf("fill=%s: got status %d", bad, status)
				}
			}
		})
	}
}
