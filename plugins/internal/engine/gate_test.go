package engine

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// A proxy that takes requests and never says a word keeps nobody else from pulling.
func TestSilentProxyHoldsNobodyUp(t *testing.T) {
	asked := make(chan struct{}, 1)
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // else the end of the client is not noticed
		if r.URL.Path == wire.RouteDelta {
			asked <- struct{}{}
		}
		<-r.Context().Done()
	}))
	t.Cleanup(silent.Close)
	t.Cleanup(silent.CloseClientConnections)
	p := newFakeProxy(t)
	p.add(testRef, newTestImage(t, files{"a": "1"}))
	e := openConfig(t, Config{
		Root: t.TempDir(), HeaderTimeout: time.Hour,
		Proxies: []Proxy{{Address: silent.URL, Registries: []string{"silent.test"}}, {Address: p.URL, Registries: []string{"registry.test"}}},
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := e.testPull(ctx, "silent.test/app:1")
		ended <- err
	}()
	<-asked
	pull(t, e, testRef)
	wait(t, e, testRef)
	if err := e.Sweep(t.Context(), nil); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("the pull from the silent proxy succeeded")
	}
}

// Contents that do not come are asked for again, long before metadata that does not
// come would be given up.
func TestStalledStreamIsAskedForAgain(t *testing.T) {
	p := newFakeProxy(t)
	img := newTestImage(t, manyFiles(1, 20))
	p.add(testRef, img)
	var stalled atomic.Bool
	p.set(func(r *http.Request, _ toc.Object, b []byte) ([]byte, error) {
		if stalled.CompareAndSwap(false, true) {
			<-r.Context().Done()
			return nil, errCut
		}
		return b, nil
	})
	e := openConfig(t, Config{
		Root: t.TempDir(), HeaderTimeout: time.Hour, StreamTimeout: 300 * time.Millisecond,
		Proxies: []Proxy{{Address: p.URL, Registries: []string{"*"}}},
	})
	pull(t, e, testRef)
	wait(t, e, testRef)
	check(t, e, img)
}

// Pulls that begin while the request of another is under way name it, and rest on it. If
// that comes to nothing they ask again.
func TestJointRequests(t *testing.T) {
	for name, fails := range map[string]bool{"answered": false, "refused": true} {
		t.Run(name, func(t *testing.T) {
			p := newFakeProxy(t)
			shared := manyFiles(1, 50)
			a, b := newTestImage(t, shared, files{"own": "a"}), newTestImage(t, shared, files{"own": "b"})
			p.add("registry.test/a:1", a)
			p.add("registry.test/b:1", b)
			held, second := make(chan struct{}), make(chan struct{})
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != wire.RouteDelta {
					p.ServeHTTP(w, r)
					return
				}
				body, err := io.ReadAll(r.Body)
				if err != nil {
					return
				}
				var req wire.DeltaRequest
				if err := wire.DecodeRequest(bytes.NewReader(body), r.Header.Get("Content-Encoding"), &req); err != nil {
					t.Error(err)
				}
				r.Body = io.NopCloser(bytes.NewReader(body))
				switch req.Ref {
				case "registry.test/a:1":
					close(held)
					<-second // its answer waits for the other request
					if fails {
						p.mu.Lock()
						p.named[req.Request] = a // was planned, but does not get through
						p.came.Broadcast()
						p.mu.Unlock()
						panic(http.ErrAbortHandler)
					}
				case "registry.test/b:1":
					if len(req.After) == 1 {
						close(second)
					}
				}
				p.ServeHTTP(w, r)
			}))
			t.Cleanup(front.Close)
			e := openConfig(t, Config{Root: t.TempDir(), HeaderTimeout: time.Hour, Proxies: []Proxy{{Address: front.URL, Registries: []string{"*"}}}})
			ended := make(chan error, 1)
			go func() {
				got, err := e.testPull(t.Context(), "registry.test/a:1")
				if err == nil {
					got.Release()
				}
				ended <- err
			}()
			<-held
			pull(t, e, "registry.test/b:1")
			if err := <-ended; (err != nil) != fails {
				t.Errorf("the first pull: %v", err)
			}
			wait(t, e, "registry.test/b:1")
			check(t, e, b)
			if !fails {
				wait(t, e, "registry.test/a:1")
				check(t, e, a)
				if _, most := p.counts(); most != 1 {
					t.Errorf("an object was sent %d times", most)
				}
			}
		})
	}
}
