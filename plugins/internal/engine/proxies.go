package engine

import (
	"context"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/starlight-delta/starlight/plugins/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Proxy is one proxyd.
type Proxy struct {
	Address    string
	Registries []string // host patterns as of path.Match; first proxy that matches wins
	// Files are the certificates and the token of its connections.
	Files delta.Files
	// Added tells that it was added at run time, and goes when the engine is closed.
	Added bool
}

// proxy is a Proxy with its connections.
type proxy struct {
	Proxy
	client *delta.Client
	stop   context.CancelFunc // ends keepWarm
}

func (e *Engine) newProxy(p Proxy) (*proxy, error) {
	client, err := delta.New(delta.Config{Address: p.Address, Files: p.Files, IdleTimeout: e.cfg.HeaderTimeout, StreamTimeout: e.cfg.StreamTimeout})
	if err != nil {
		return nil, err
	}
	return &proxy{Proxy: p, client: client}, nil
}

// keepWarm keeps connections to p until it is removed.
func (e *Engine) keepWarm(p *proxy) {
	ctx, cancel := context.WithCancel(e.ctx)
	p.stop = cancel
	e.wg.Go(func() {
		defer cancel()
		p.client.KeepWarm(ctx, func(err error) { log.G(ctx).WithError(err).Debug("proxy does not answer pings") })
	})
}

func (e *Engine) proxyList() []*proxy {
	e.proxyMu.RLock()
	defer e.proxyMu.RUnlock()
	return e.proxies
}

// Proxies lists the proxies in the order in which they are asked.
func (e *Engine) Proxies() []Proxy {
	all := e.proxyList()
	out := make([]Proxy, len(all))
	for i, p := range all {
		out[i] = p.Proxy
	}
	return out
}

// AddProxy adds a proxy after those there are, until the engine is closed.
// errdefs.ErrAlreadyExists: there is one of this address. errdefs.ErrNotImplemented:
// the kernel cannot mount what it would bring.
func (e *Engine) AddProxy(p Proxy) error {
	if e.unfit != nil {
		return fmt.Errorf("this kernel or file system cannot mount lazy images: %w: %w", e.unfit, errdefs.ErrNotImplemented)
	}
	p.Added = true
	px, err := e.newProxy(p)
	if err != nil {
		return err
	}
	if _, err := e.startLazy(); err != nil {
		return err
	}
	e.proxyMu.Lock()
	defer e.proxyMu.Unlock()
	if slices.ContainsFunc(e.proxies, func(o *proxy) bool { return o.Address == p.Address }) {
		return fmt.Errorf("proxy %q: %w", p.Address, errdefs.ErrAlreadyExists)
	}
	if e.ctx.Err() != nil {
		return fmt.Errorf("the engine is closing: %w", errdefs.ErrUnavailable)
	}
	e.keepWarm(px)
	e.proxies = append(slices.Clip(e.proxies), px)
	return nil
}

// RemoveProxy makes the engine ask a proxy no more; streams under way end as they
// would. One of the configuration is back when the engine is opened again.
func (e *Engine) RemoveProxy(address string) error {
	e.proxyMu.Lock()
	defer e.proxyMu.Unlock()
	i := slices.IndexFunc(e.proxies, func(p *proxy) bool { return p.Address == address })
	if i < 0 {
		return fmt.Errorf("proxy %q is not configured: %w", address, errdefs.ErrNotFound)
	}
	e.proxies[i].stop()
	e.proxies[i].client.Close()
	e.proxies = slices.Delete(slices.Clone(e.proxies), i, i+1)
	return nil
}

// Ping measures a round trip to a proxy on a warm connection.
func (e *Engine) Ping(ctx context.Context, address string) (time.Duration, wire.Ping, error) {
	for _, p := range e.proxyList() {
		if p.Address == address {
			return p.client.Ping(ctx)
		}
	}
	return 0, wire.Ping{}, fmt.Errorf("proxy %q is not configured: %w", address, errdefs.ErrNotFound)
}

// proxiesFor lists the proxies that serve a registry, in the order to try them.
func (e *Engine) proxiesFor(host string) []*proxy {
	var out []*proxy
	for _, p := range e.proxyList() {
		for _, pattern := range p.Registries {
			if ok, err := path.Match(pattern, host); err == nil && ok {
				out = append(out, p)
				break
			}
		}
	}
	return out
}

func noProxy(host string) error {
	return fmt.Errorf("no proxy is configured for registry %q, see ctr-starlight proxy add: %w", host, errdefs.ErrNotFound)
}

// StageIndexed is the stage that Notify reports when a proxy has all of an image.
const StageIndexed = "indexed"

// Notify makes the proxies that serve a registry index an image that they may not
// know yet. It asks for the image as a pull would, and takes nothing of it.
func (e *Engine) Notify(ctx context.Context, ref, platform string, creds *wire.Credentials, report func(proxy string, p wire.Progress) error) error {
	_, host, err := splitRef(ref)
	if err != nil {
		return err
	}
	proxies := e.proxiesFor(host)
	if len(proxies) == 0 {
		return noProxy(host)
	}
	for _, p := range proxies {
		if err := p.client.Index(ctx, wire.DeltaRequest{Ref: canonical(ref), Platform: platform, Credentials: creds},
			func(w wire.Progress) error { return report(p.Address, w) }); err != nil {
			return err
		}
		if err := report(p.Address, wire.Progress{Stage: StageIndexed}); err != nil {
			return err
		}
	}
	return nil
}
