package engine

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// This file is for pulls of clients that do not use the transfer service. What
// they pull is seen by its digests only: under which name, from which port and
// with whose credentials, they keep to themselves.

type askedKey struct{}

// WithAsked marks the context of a pull for which Pull is called by the transfer
// service, so that nobody else below does.
func WithAsked(ctx context.Context) context.Context { return context.WithValue(ctx, askedKey{}, true) }

// Asked tells whether ctx is marked by WithAsked.
func Asked(ctx context.Context) bool { return ctx.Value(askedKey{}) != nil }

type registryKey struct{}

// WithRegistry marks the context of a pull with a way to fetch from the registry as
// its client does. Virtual blobs that are read meanwhile may come this way.
func WithRegistry(ctx context.Context, fetch func(context.Context, ocispec.Descriptor) (io.ReadCloser, error)) context.Context {
	return context.WithValue(ctx, registryKey{}, fetch)
}

// lentRegistry is what WithRegistry has put into ctx, or nil.
func lentRegistry(ctx context.Context) fetchFunc {
	f, _ := ctx.Value(registryKey{}).(fetchFunc)
	return f
}

// Known is an image whose chains are known.
type Known struct {
	Name     string // host/repo
	Manifest ocispec.Descriptor
	Layers   []ocispec.Descriptor
	DiffIDs  []digest.Digest
}

// KnownByChain lists the images whose top chain is id. Their layers are virtual
// blobs then, even if they had been forgotten.
func (e *Engine) KnownByChain(id digest.Digest) []Known {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Known
	for _, img := range e.images {
		if top := img.top(); top == nil || top.id != id {
			continue
		}
		e.addBlobs(img)
		k := Known{Name: img.rec.Name, Manifest: img.rec.Manifest}
		for _, l := range img.rec.Layers {
			k.Layers = append(k.Layers, l.Descriptor)
			k.DiffIDs = append(k.DiffIDs, digest.Digest(l.DiffID.String()))
		}
		out = append(out, k)
	}
	return out
}

// CredentialsOf returns credentials with which an image of the repository name was
// pulled since the start, or nil.
func (e *Engine) CredentialsOf(name string) *wire.Credentials {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, img := range e.images {
		if img.rec.Name == name && img.source.creds != nil {
			return img.source.creds
		}
	}
	return nil
}

// Hosts lists what a registry of a host name may be called with its port, the
// likeliest first: as in the configuration and of images that are here, or else as
// the proxies call it; and without.
func (e *Engine) Hosts(ctx context.Context, hostname string) []string {
	var out []string
	add := func(host string) {
		if h, err := url.Parse("//" + host); err == nil && h.Hostname() == hostname && !slices.Contains(out, host) {
			out = append(out, host)
		}
	}
	for _, p := range e.proxyList() {
		for _, pattern := range p.Registries {
			if !strings.ContainsAny(pattern, `*?[\`) {
				add(pattern)
			}
		}
	}
	e.mu.Lock()
	for _, img := range e.images {
		add(hostOf(img.rec.Name))
	}
	e.mu.Unlock()
	if len(out) > 0 {
		return append(out, hostname)
	}
	for _, p := range e.proxyList() {
		if !p.mayServe(hostname) {
			continue
		}
		_, pong, err := p.client.Ping(ctx)
		if err != nil {
			log.G(ctx).WithError(err).WithField("proxy", p.Address).Debug("cannot ask for the ports of registries")
			continue
		}
		for _, host := range pong.Registries {
			add(host)
		}
	}
	add(hostname)
	return out
}

// mayServe tells whether a pattern matches a host of this name with some port.
func (p *proxy) mayServe(hostname string) bool {
	return slices.ContainsFunc(p.Registries, func(pattern string) bool {
		bare, _, _ := strings.Cut(pattern, ":")
		ok, err := path.Match(bare, hostname)
		return ok && err == nil
	})
}

// PlainManifest is Plain for an image of which only a reference with its digest is
// known.
func (e *Engine) PlainManifest(namespace, ref string, manifest digest.Digest, why error) {
	e.plain(refKey{namespace: namespace, ref: ref}, refRecord{Target: manifest, Reason: why.Error(), Pulled: time.Now(), Unnamed: true})
}

// Unnamed is a pull for which Name has not been called.
type Unnamed struct {
	Namespace, Ref string
	Manifest       digest.Digest
}

// Unnamed lists the pulls whose images have no name yet.
func (e *Engine) Unnamed() []Unnamed {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Unnamed
	for k, r := range e.refs {
		if r.rec.Unnamed {
			out = append(out, Unnamed{k.namespace, k.ref, r.rec.Target})
		}
	}
	return out
}

// Name gives an image that was pulled without a name the names that it has got.
func (e *Engine) Name(u Unnamed, names []string) error {
	old := refKey{namespace: u.Namespace, ref: u.Ref}
	e.mu.Lock()
	r := e.refs[old]
	if r == nil || !r.rec.Unnamed || len(names) == 0 {
		e.mu.Unlock()
		return nil
	}
	rec := r.rec
	rec.Unnamed = false
	named := map[refKey]*ref{}
	for _, name := range names {
		named[refKey{namespace: u.Namespace, ref: name}] = &ref{rec, r.img, r.counted}
	}
	delete(e.refs, old)
	maps.Copy(e.refs, named)
	e.mu.Unlock()
	for k := range named {
		if err := e.state.putRef(k, rec); err != nil {
			return fmt.Errorf("name %s: %w", k.ref, err)
		}
	}
	if named[old] != nil {
		return nil
	}
	return e.state.drop(nil, []refKey{old})
}
