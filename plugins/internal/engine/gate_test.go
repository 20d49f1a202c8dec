package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
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

// What another stream takes over is not asked for again when the first one ends without
// it, and readers ask the one that will bring it.
func TestTakenObjects(t *testing.T) {
	p := newFakeProxy(t)
	late := random(7, 1000)
	a, b := newTestImage(t, files{"a": "1", "late": late}), newTestImage(t, files{"late": late})
	p.add("registry.test/a:1", a)
	p.add("registry.test/b:1", b)
	p.taken = map[string][]uint32{"registry.test/b:1": {0}}
	held, pulled, goon := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var first atomic.Pointer[http.Request]
	p.set(func(r *http.Request, o toc.Object, c []byte) ([]byte, error) {
		if first.CompareAndSwap(nil, r) {
			close(held)
			<-pulled
		}
		if o.Digest != sha256.Sum256([]byte(late)) {
			return c, nil
		}
		if first.Load() == r {
			return nil, nil // it goes with the other stream
		}
		<-goon
		return c, nil
	})
	e := openEngine(t, t.TempDir(), p)
	pull(t, e, "registry.test/a:1")
	<-held
	pull(t, e, "registry.test/b:1")
	close(pulled)
	e.mu.Lock()
	img := e.images[a.digest()]
	e.mu.Unlock()
	for main := img.mainStream(e); main != nil; main = img.mainStream(e) { // until the first stream has ended
		runtime.Gosched()
	}
	close(goon)
	wait(t, e, "registry.test/a:1")
	wait(t, e, "registry.test/b:1")
	check(t, e, a)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.asked) != 2 {
		t.Errorf("%d requests, want one for each image", len(p.asked))
	}
	p.taken = map[string][]uint32{"registry.test/c:1": {1}}
	c := newTestImage(t, files{"c": "1"})
	p.images["registry.test/c:1"] = c
	p.mu.Unlock()
	_, err := e.testPull(t.Context(), "registry.test/c:1")
	p.mu.Lock()
	if !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("an object that does not exist is taken: %v", err)
	}
}

func (i *image) mainStream(e *Engine) *stream {
	e.mu.Lock()
	defer e.mu.Unlock()
	return i.main
}
