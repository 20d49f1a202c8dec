package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/report"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/wan"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// tap stands between workers and a proxyd and counts what bundles are made of.
type tap struct {
	address string
	srv     *http.Server

	reading sync.WaitGroup
	mu      sync.Mutex // guards: got, err
	got     report.Sent
	err     error
}

func newTap(ctx context.Context, ns *wan.Namespace, proxyd string) (*tap, error) {
	const port = sandbox.ProxydPort + 1
	to, err := url.Parse(proxyd)
	if err != nil {
		return nil, err
	}
	t := &tap{address: fmt.Sprintf("http://%s:%d", ns.Addr, port)}
	l, err := ns.Listen(ctx, strings.TrimPrefix(t.address, "http://"))
	if err != nil {
		return nil, err
	}
	t.srv = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:      ns.Client().Transport,
		FlushInterval:  -1,
		ModifyResponse: t.watch,
	}}
	go func() { _ = t.srv.Serve(l) }() // ends with Close
	return t, nil
}

// Close implements io.Closer.
func (t *tap) Close() error { return t.srv.Close() }

// watch reads a copy of each bundle that passes.
func (t *tap) watch(r *http.Response) error {
	if r.Header.Get("Content-Type") != wire.BundleType {
		return nil
	}
	reader := wire.NewReader
	if strings.HasSuffix(r.Request.URL.Path, wire.RouteObjects) {
		reader = wire.NewObjectsReader
	}
	pr, pw := io.Pipe()
	r.Body = &copied{ReadCloser: r.Body, to: pw}
	t.reading.Go(func() {
		var all counter
		data, err := contents(reader(io.TeeReader(pr, &all)))
		if err == nil {
			_, err = io.Copy(&all, pr)
		}
		pr.CloseWithError(err) // the worker's copy goes on
		t.mu.Lock()
		defer t.mu.Unlock()
		t.got.Data += data
		t.got.Header += int64(all) - data
		t.err = errors.Join(t.err, err)
	})
	return nil
}

// contents adds up the frames of a bundle that carry contents.
func contents(r *wire.Reader) (int64, error) {
	var n int64
	for {
		f, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, fmt.Errorf("read a copy of a bundle: %w", err)
		case f.Type == wire.FrameData:
			n += int64(f.Data.Wire)
		}
	}
}

func (t *tap) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.got, t.err = report.Sent{}, nil
}

// sent is what came since the last reset. All bundles must have ended.
func (t *tap) sent() (report.Sent, error) {
	t.reading.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.got, t.err
}

// copied is a body that writes what is read of it to a pipe, too.
type copied struct {
	io.ReadCloser
	to *io.PipeWriter
}

// Read implements io.Reader.
func (c *copied) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	_, _ = c.to.Write(b[:n]) // the reader of the copy reports what it did not like
	if err != nil {
		c.to.CloseWithError(err)
	}
	return n, err
}

// Close implements io.Closer.
func (c *copied) Close() error {
	return errors.Join(c.to.Close(), c.ReadCloser.Close())
}

// counter counts what is written to it.
type counter int64

// Write implements io.Writer.
func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}
