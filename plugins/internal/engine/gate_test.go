package engine

import (
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
