package delta

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func TestNewRefusesAddresses(t *testing.T) {
	for _, a := range []string{"", "proxy:8090", "ftp://proxy", "http://", "http://user:secret@proxy", "http://proxy/?x=1", "http://proxy:x"} {
		if _, err := New(Config{Address: a}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %v, want invalid argument", a, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	refuse := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	code := func(c string) string { return fmt.Sprintf(`{"code":%q,"message":"m\u001b[2J"}`, c) }
	tests := []struct {
		name    string
		answer  http.HandlerFunc
		is      error
		retry   bool
		refused string
	}{
		{"invalid", refuse(400, code(wire.CodeInvalid)), errdefs.ErrInvalidArgument, false, wire.CodeInvalid},
		{"unauthorized", refuse(401, code(wire.CodeUnauthorized)), errdefs.ErrUnauthenticated, false, wire.CodeUnauthorized},
		{"denied", refuse(403, code(wire.CodeDenied)), errdefs.ErrPermissionDenied, false, wire.CodeDenied},
		{"not found", refuse(404, code(wire.CodeNotFound)), errdefs.ErrNotFound, false, wire.CodeNotFound},
		{"unsupported", refuse(422, code(wire.CodeUnsupported)), errdefs.ErrNotImplemented, false, wire.CodeUnsupported},
		{"busy", refuse(503, code(wire.CodeBusy)), errdefs.ErrResourceExhausted, true, wire.CodeBusy},
		{"upstream", refuse(502, code(wire.CodeUpstream)), errdefs.ErrUnavailable, true, wire.CodeUpstream},
		{"internal", refuse(500, code(wire.CodeInternal)), errdefs.ErrInternal, true, wire.CodeInternal},
		{"code of the future", refuse(418, code("teapot")), errdefs.ErrUnknown, false, "teapot"},
		{"no such route", refuse(404, "404 page not found"), ErrProtocol, false, ""},
		{"load balancer", refuse(503, "<html>no backend"), errdefs.ErrUnavailable, true, ""},
		{"web page", refuse(200, "<html>sign in to the hotel's network"), ErrProtocol, false, ""},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		}, ErrProtocol, false, ""},
		{"huge", refuse(500, strings.Repeat("x", 1<<20)), ErrProtocol, false, ""},
		{"other version", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", wire.BundleType)
			_, _ = io.WriteString(w, "SLDB\x01\x00\x00\x00")
		}, ErrProtocol, false, ""},
		{"truncated", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", wire.BundleType)
			_, _ = io.WriteString(w, "SLDB\x03")
		}, wire.ErrTruncated, true, ""},
		{"not a bundle", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", wire.BundleType)
			_, _ = io.WriteString(w, "hello hello hello")
		}, toc.ErrInvalid, false, ""},
		{"connection cut", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, errdefs.ErrUnavailable, true, ""},
		{"cut in the body", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", wire.BundleType)
			_, _ = io.WriteString(w, "SLDB\x03\x00\x00\x00")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, nil, true, ""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			c := serveHTTP(t, tc.answer, Config{})
			b, err := c.Delta(t.Context(), request)
			if err == nil {
				defer b.Close()
				_, err = ReadHeader(b, request, Held{}, nil)
			}
			if err == nil || tc.is != nil && !errors.Is(err, tc.is) {
				t.Fatalf("got %v, want %v", err, tc.is)
			}
			if Retryable(err) != tc.retry {
				t.Errorf("%v: retryable %v, want %v", err, !tc.retry, tc.retry)
			}
			var refused *wire.Error
			if errors.As(err, &refused) != (tc.refused != "") || tc.refused != "" && refused.Code != tc.refused {
				t.Errorf("got %v, want a wire.Error with code %q", err, tc.refused)
			}
			if len(err.Error()) > 4<<10 || strings.ContainsRune(err.Error(), '\x1b') {
				t.Errorf("unfit for a log: %q", err)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + l.Addr().String()
	_ = l.Close()
	c, err := New(Config{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Delta(t.Context(), request); !errdefs.IsUnavailable(err) || !Retryable(err) || !strings.Contains(err.Error(), address) {
		t.Errorf("got %v, want unavailable with the address", err)
	}
}

// TestStalled covers a proxyd that falls silent before the response, before the
// header, and in the middle of a frame.
func TestStalled(t *testing.T) {
	for _, say := range []string{"", "SLDB\x03\x00\x00\x00", "SLDB\x03\x00\x00\x00\x03\x00\x90\x02{"} {
		t.Run(fmt.Sprintf("after %d bytes", len(say)), func(t *testing.T) {
			t.Parallel()
			release := make(chan struct{})
			c := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if say != "" {
					w.Header().Set("Content-Type", wire.BundleType)
					_, _ = io.WriteString(w, say)
					_ = http.NewResponseController(w).Flush()
				}
				<-release
			}), Config{IdleTimeout: 100 * time.Millisecond})
			t.Cleanup(func() { close(release) })
			b, err := c.Delta(t.Context(), request)
			if err == nil {
				defer b.Close()
				_, err = ReadHeader(b, request, Held{}, nil)
			}
			if !errors.Is(err, ErrStalled) || !Retryable(err) || !errdefs.IsUnavailable(err) {
				t.Errorf("got %v, want stalled", err)
			}
		})
	}
}

// TestSlowReaderIsNoStall: time that the worker takes between reads is its own.
func TestSlowReaderIsNoStall(t *testing.T) {
	t.Parallel()
	a := newAnswer(t, nil)
	mux := http.NewServeMux()
	mux.HandleFunc(wire.RouteDelta, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", wire.BundleType)
		a.write(t, wire.NewWriter(w))
	})
	c := serveHTTP(t, mux, Config{IdleTimeout: time.Second})
	b, err := c.Delta(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	<-time.After(1200 * time.Millisecond) // the disk is slow
	if _, err := ReadHeader(b, request, Held{}, nil); err != nil {
		t.Error(err)
	}
}

func TestCancel(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request, bundle *wire.Writer) {
		_ = bundle.Progress(wire.Progress{Stage: "ingest"})
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	b, err := c.Delta(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, err = ReadHeader(b, request, Held{}, func(wire.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) || Retryable(err) {
		t.Errorf("got %v, want canceled", err)
	}
}

// TestConnections counts handshakes: warm connections are used again, also after
// complete bundles, and lost ones are replaced without the caller noticing.
func TestConnections(t *testing.T) {
	a := newAnswer(t, nil)
	mux := http.NewServeMux()
	mux.HandleFunc(wire.RoutePing, ping)
	mux.HandleFunc(wire.RouteDelta, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", wire.BundleType)
		a.write(t, wire.NewWriter(w))
	})
	srv := httptest.NewUnstartedServer(mux)
	var opened atomic.Int32
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	c, err := New(Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	warm := opened.Load()
	if warm != 2 {
		t.Errorf("Warm opened %d connections, want 2", warm)
	}
	pull := func() {
		t.Helper()
		b, err := c.Delta(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if _, err := ReadHeader(b, request, Held{}, nil); err != nil {
			t.Fatal(err)
		}
		for f := (wire.Frame{}); f.Type != wire.FrameEnd; {
			if f, err = b.Next(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 3 {
		pull()
	}
	if _, p, err := c.Ping(t.Context()); err != nil || p.Version != "1.2.3" {
		t.Fatalf("got %+v, %v", p, err)
	}
	if got := opened.Load(); got != warm {
		t.Errorf("three pulls and a ping opened %d more connections, want 0", got-warm)
	}
	srv.CloseClientConnections()
	pull()
}

// The first connection that is opened carries something at once, and later ones do not.
func TestWarmFills(t *testing.T) {
	var fills atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc(wire.RoutePing, func(w http.ResponseWriter, r *http.Request) {
		ping(w, r)
		n, _ := strconv.Atoi(r.URL.Query().Get(wire.FillParam))
		_, _ = w.Write(bytes.Repeat([]byte{' '}, n))
		fills.Add(int64(n))
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	c, err := New(Config{Address: srv.URL + "/prefix/.."})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		for range 2 {
			if err := c.Warm(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		srv.CloseClientConnections()
	}
	if n := fills.Load(); n != fill {
		t.Errorf("%d bytes were asked for, want %d", n, fill)
	}
}

func TestOneWriteForTheRequest(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := New(Config{Address: "http://" + l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var mu sync.Mutex
	var writes []int
	dial := c.bulk.DialContext
	c.bulk.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return &countWrites{Conn: conn, count: func(n int) { mu.Lock(); writes = append(writes, n); mu.Unlock() }}, err
	}
	req := request
	for range 200 { // incompressible: 200 digests and bitmaps
		h := wire.Have{Missing: make([]byte, 100)}
		_, _ = rand.Read(h.DiffID[:])
		_, _ = rand.Read(h.Missing)
		req.Have = append(req.Have, h)
	}
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Read(make([]byte, 64<<10))
		_ = conn.Close()
	}()
	_, _ = c.Delta(t.Context(), req)
	mu.Lock()
	defer mu.Unlock()
	if len(writes) == 0 || writes[0] < 20_000 || len(writes) > 1 && writes[1] != writes[0] { // a repetition is fine
		t.Errorf("got writes of %v bytes, want one of more than 20000", writes)
	}
}

type countWrites struct {
	net.Conn
	count func(int)
}

func (c *countWrites) Write(b []byte) (int, error) {
	c.count(len(b))
	return c.Conn.Write(b)
}

func TestPing(t *testing.T) {
	tests := []struct {
		name, body string
		is         error
	}{
		{"good", `{"version":"1","protocol":3}`, nil},
		{"newer", `{"version":"9","protocol":9}`, ErrProtocol},
		{"not JSON", `<html>`, ErrProtocol},
		{"huge", `{"version":"` + strings.Repeat("x", maxPing) + `"}`, ErrProtocol},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			c := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, tc.body) }), Config{})
			rtt, _, err := c.Ping(t.Context())
			if !errors.Is(err, tc.is) || err == nil && (rtt <= 0 || rtt > 5*time.Second) {
				t.Errorf("got %s, %v, want %v", rtt, err, tc.is)
			}
		})
	}
	c := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		ping(w, r)
	}), Config{})
	if _, _, err := c.Ping(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("no keep-alive: got %v, want unavailable", err)
	}
}

func TestTLS(t *testing.T) {
	a := newAnswer(t, nil)
	var proto atomic.Value
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto.Store(r.Proto)
		w.Header().Set("Content-Type", wire.BundleType)
		a.write(t, wire.NewWriter(w))
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	writePEM(t, ca, "CERTIFICATE", srv.Certificate().Raw)
	c, err := New(Config{Address: srv.URL, Files: Files{CA: ca}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := c.Delta(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := ReadHeader(b, request, Held{}, nil); err != nil {
		t.Fatal(err)
	}
	if proto.Load() != "HTTP/2.0" {
		t.Errorf("got %v, want HTTP/2.0", proto.Load())
	}

	stranger, err := New(Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Delta(t.Context(), request); err == nil || Retryable(err) {
		t.Errorf("unknown authority: got %v, want an error that is not retryable", err)
	}
}

func TestBlob(t *testing.T) {
	content := bytes.Repeat([]byte("blob"), 1000)
	tests := []struct {
		name    string
		send    []byte
		chunked bool
		ok      bool
	}{
		{"good", content, false, true},
		{"good, chunked", content, true, true},
		{"short", content[:3999], false, false},
		{"short, chunked", content[:3999], true, false},
		{"long, chunked", append(bytes.Clone(content), 'x'), true, false},
		{"other bytes", bytes.Repeat([]byte("blub"), 1000), true, false},
		{"nothing", nil, true, false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			c := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if tc.chunked {
					_ = http.NewResponseController(w).Flush()
				}
				_, _ = w.Write(tc.send)
			}), Config{})
			var got []byte
			rc, err := c.Blob(t.Context(), wire.BlobRequest{Ref: "r/a@x", Digest: sum(content), Size: int64(len(content))})
			if err == nil {
				defer rc.Close()
				got, err = io.ReadAll(rc)
			}
			if (err == nil) != tc.ok || tc.ok && !bytes.Equal(got, content) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestObjects(t *testing.T) {
	c := serve(t, func(_ http.ResponseWriter, r *http.Request, w *wire.Writer) {
		var req wire.ObjectsRequest
		if err := wire.DecodeRequest(r.Body, r.Header.Get("Content-Encoding"), &req); err != nil {
			t.Error(err)
			return
		}
		for _, o := range req.Objects {
			_ = w.Data([]wire.Piece{{Object: o.Object, Length: 1}}, []byte("x"), false)
		}
		_ = w.End()
	})
	b, err := c.Objects(t.Context(), wire.ObjectsRequest{Ref: "r/a@x", Platform: "linux/amd64", Objects: []wire.Range{{Object: 7}, {Object: 3}}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, want := range []uint32{7, 3} {
		if f, err := b.Next(); err != nil || f.Data.Index[0].Object != want {
			t.Fatalf("got %+v, %v, want object %d", f, err, want)
		}
	}
	if f, err := b.Next(); err != nil || f.Type != wire.FrameEnd {
		t.Errorf("got %v, %v, want end", f.Type, err)
	}
}

// What comes on streams says that they flow, what is asked for urgently does not.
func TestStreamed(t *testing.T) {
	c := serve(t, func(_ http.ResponseWriter, _ *http.Request, w *wire.Writer) { _ = w.End() })
	began := time.Now()
	urgent, err := c.Objects(t.Context(), wire.ObjectsRequest{Ref: "r/a@x", Platform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	defer urgent.Close()
	if _, err := urgent.Next(); err != nil {
		t.Fatal(err)
	}
	if at := c.Streamed(); at.After(began) {
		t.Errorf("an answer to Objects is a stream, at %v", at)
	}
	stream, err := c.Delta(t.Context(), wire.DeltaRequest{Ref: "r/a:x", Platform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	_, _ = stream.Next() // whatever it is, it came
	if at := c.Streamed(); !at.After(began) {
		t.Errorf("nothing was streamed since %v", at)
	}
}

// TestKeepWarm: pings go on while the proxyd is used, and stop after that.
func TestKeepWarm(t *testing.T) {
	pings := make(chan struct{}, 1000)
	c := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		pings <- struct{}{}
		ping(w, r)
	}), Config{PingEvery: time.Millisecond, KeepFor: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.KeepWarm(ctx, func(err error) { t.Error(err) })
	}()
	for range 6 {
		<-pings
	}
	cancel()
	<-done
}
