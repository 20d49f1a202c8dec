// Package classic makes delta pulls of the pulls of clients that do not use the
// transfer service, but the classic protocol of remote snapshotters: nerdctl up to
// 2.2, CRI with keys that transfer does not know, "ctr image pull --local", and
// whoever calls Pull of containerd's client.
//
// Such a client fetches index, manifest and config itself. What it wants is seen
// when it asks for more: when it prepares a snapshot that it names after a chain of
// layers (Seek), or when it begins to fetch a layer (Ahead). By then the metadata
// of the namespace says which manifest that belongs to and from which repository it
// came, and the engine can be asked for it.
//
// Credentials stay with the client. Used are those with which the transfer service
// pulled from the same repository since the start, or none.
package classic

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/plugins/internal/engine"
	"github.com/starlight-delta/starlight/plugins/internal/keylock"
	"github.com/starlight-delta/starlight/plugins/internal/virtual"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Engine is what pulls need of engine.Engine.
type Engine interface {
	Pull(ctx context.Context, r engine.PullRequest) (*engine.Pull, error)
	PlainManifest(namespace, ref string, manifest digest.Digest, why error)
	HasChain(chain digest.Digest) bool
	KnownByChain(chain digest.Digest) []engine.Known
	Virtual(blob digest.Digest) (engine.BlobInfo, bool)
	CredentialsOf(name string) *wire.Credentials
	Hosts(ctx context.Context, hostname string) []string
}

var _ Engine = (*engine.Engine)(nil)

// Holder keeps virtual blobs from the garbage collector until they are recorded.
type Holder interface {
	Hold(blobs ...digest.Digest) (release func())
}

// Config of a Puller. Content and Snapshotter are as clients see them, with
// namespaces and leases.
type Config struct {
	Engine      Engine
	Content     content.Store
	Snapshotter snapshots.Snapshotter
	Holder      Holder
	// Default tells whether starlight is the snapshotter of a namespace for clients
	// that name none.
	Default func(ctx context.Context, namespace string) (bool, error)
	// Patience bounds how long Seek waits for a proxy. While it does, containerd's
	// garbage collector may wait for it, and with it all who use the snapshotter.
	Patience time.Duration
}

// Puller pulls what is asked for. It is safe for concurrent use.
type Puller struct {
	config  Config
	catalog catalog
	pulling keylock.Locker // by manifest and namespace

	mu      sync.Mutex
	decided map[attempt]time.Time // attempts that failed; guarded by mu
}

// attempt is one client's pull of one manifest. Every pull has a lease of its own.
type attempt struct {
	namespace, lease string
	manifest         digest.Digest
}

// New returns a Puller.
func New(c Config) *Puller {
	return &Puller{config: c, catalog: newCatalog(c.Content), decided: map[attempt]time.Time{}}
}

var (
	errHere     = errors.New("its layers are in the content store already, so they are unpacked from there")
	errUnpacked = errors.New("the client fetches the layers before it names a snapshotter: pull without \"--local\", or make starlight the default snapshotter of the namespace")
	errOrigin   = errors.New("the content store does not tell from which repository the manifest came")
)

// Seek makes the engine know the chain that a client is about to prepare, if it
// can. Until release, which is never nil, the engine does not forget it.
func (p *Puller) Seek(ctx context.Context, chain digest.Digest, labels map[string]string) (release func()) {
	nothing := func() {}
	if engine.Asked(ctx) {
		return nothing
	}
	ns, ok := namespaces.Namespace(ctx)
	if !ok {
		return nothing
	}
	if p.config.Engine.HasChain(chain) {
		p.record(ctx, chain)
		return nothing
	}
	m, err := p.catalog.byChain(ctx, chain)
	if err != nil {
		log.G(ctx).WithError(err).WithField("chain", chain).Debug("no manifest of the chain is known")
		return nothing
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Patience)
	defer cancel()
	known := func() bool { return p.config.Engine.HasChain(chain) }
	release, _ = p.pull(ctx, ns, m, labels[snapshotters.TargetRefLabel], known)
	return release
}

// Ahead is asked when a client begins to fetch a layer. If the namespace is one in
// which clients use starlight, the image becomes lazy before it is fetched: the
// layer is a virtual blob then, and all of its snapshots are there.
func (p *Puller) Ahead(ctx context.Context, layer digest.Digest) bool {
	if engine.Asked(ctx) {
		return false
	}
	ns, ok := namespaces.Namespace(ctx)
	if !ok {
		return false
	}
	if ours, err := p.config.Default(ctx, ns); err != nil || !ours {
		return false
	}
	m, err := p.catalog.byLayer(ctx, layer)
	if err != nil {
		return false
	}
	isVirtual := func() bool { _, ok := p.config.Engine.Virtual(layer); return ok }
	release, pulled := p.pull(ctx, ns, m, "", isVirtual)
	defer release()
	if pulled != nil {
		if err := p.prepare(ctx, pulled.DiffIDs); err != nil {
			log.G(ctx).WithError(err).WithField("manifest", m.desc.Digest).Warn("failed to prepare the snapshots of a lazy image: its layers will be unpacked")
		}
	}
	return isVirtual()
}

// Unpacks is told of a client that unpacks a chain without naming it, and cannot be
// answered that it is there.
func (p *Puller) Unpacks(ctx context.Context, chain digest.Digest) {
	ns, ok := namespaces.Namespace(ctx)
	if !ok || engine.Asked(ctx) {
		return
	}
	m, err := p.catalog.byChain(ctx, chain)
	if err != nil {
		return
	}
	a := attemptOf(ctx, ns, m)
	if p.failed(a) {
		return
	}
	p.plain(ctx, a, m, errUnpacked)
}

// pull asks the engine for m, once for all who want it at a time: those who wait
// see whether it is known meanwhile. The result is nil if it was, or if the engine
// cannot.
func (p *Puller) pull(ctx context.Context, ns string, m *manifest, hint string, known func() bool) (release func(), _ *engine.Pull) {
	nothing := func() {}
	key := ns + " " + m.desc.Digest.String()
	if err := p.pulling.Lock(ctx, key); err != nil {
		return nothing, nil
	}
	defer p.pulling.Unlock(key)
	a := attemptOf(ctx, ns, m)
	if p.failed(a) || known() {
		return nothing, nil
	}
	if p.here(ctx, m) {
		p.plain(ctx, a, m, errHere)
		return nothing, nil
	}
	pull, ref, err := p.ask(ctx, ns, m, hint)
	if err != nil {
		// A client that has gone has decided nothing.
		if !errors.Is(context.Cause(ctx), context.Canceled) {
			p.plain(ctx, a, m, err)
		}
		return nothing, nil
	}
	held := p.config.Holder.Hold(layersOf(pull.Layers)...)
	if err := virtual.Record(ctx, p.config.Content, ref, virtual.Layers(pull.Layers, pull.DiffIDs), nil); err != nil {
		log.G(ctx).WithError(err).WithField("ref", ref).Warn("failed to record layers")
	}
	return func() { held(); pull.Release() }, pull
}

// maxOrigins bounds how many places are tried for one manifest.
const maxOrigins = 4

// ask asks the engine for m under each name that it may have.
func (p *Puller) ask(ctx context.Context, ns string, m *manifest, hint string) (*engine.Pull, string, error) {
	names := p.origins(ctx, m, hint)
	if len(names) == 0 {
		return nil, "", errOrigin
	}
	var failures []error
	for _, name := range names[:min(len(names), maxOrigins)] {
		ref := name + "@" + m.desc.Digest.String()
		pull, err := p.config.Engine.Pull(ctx, engine.PullRequest{
			Namespace: ns, Ref: ref, Unnamed: true, Platform: m.platform,
			Credentials: func(context.Context, string) (*wire.Credentials, error) {
				return p.config.Engine.CredentialsOf(name), nil
			},
		})
		switch {
		case err == nil:
			return pull, ref, nil
		case ctx.Err() != nil:
			return nil, "", fmt.Errorf("the proxy did not answer in time: %w", err)
		}
		failures = append(failures, fmt.Errorf("%s: %w", name, err))
		var answer *wire.Error
		if errdefs.IsUnavailable(err) && !errors.As(err, &answer) {
			break // the proxies are away, whatever the name
		}
	}
	return nil, "", errors.Join(failures...)
}

// origins lists the repositories, with their hosts, that m may have come from. The
// hint comes from labels that images, too, can bring: it helps with nothing but
// the port, and the digest decides.
func (p *Puller) origins(ctx context.Context, m *manifest, hint string) []string {
	hinted, _, _ := strings.Cut(hint, "/")
	var out []string
	for hostname, repos := range m.sources {
		hosts := p.config.Engine.Hosts(ctx, hostname)
		if h, _, _ := strings.Cut(hinted, ":"); h == hostname || strings.HasPrefix(hinted, "["+hostname+"]") {
			hosts = append([]string{hinted}, slices.DeleteFunc(hosts, func(h string) bool { return h == hinted })...)
		}
		for _, host := range hosts {
			for _, repo := range repos {
				out = append(out, host+"/"+repo)
			}
		}
	}
	return out
}

// plain notes that an attempt failed.
func (p *Puller) plain(ctx context.Context, a attempt, m *manifest, why error) {
	const (
		keep = time.Hour
		many = 1000
	)
	p.mu.Lock()
	if len(p.decided) >= many {
		for k, at := range p.decided {
			if time.Since(at) > keep || len(p.decided) >= 2*many {
				delete(p.decided, k)
			}
		}
	}
	p.decided[a] = time.Now()
	p.mu.Unlock()
	ref := m.desc.Digest.String()
	for hostname, repos := range m.sources {
		if len(repos) > 0 {
			ref = hostname + "/" + repos[0] + "@" + ref
			break
		}
	}
	log.G(ctx).WithError(why).WithField("ref", ref).Warn("not a delta pull: the image comes from the registry")
	p.config.Engine.PlainManifest(a.namespace, ref, m.desc.Digest, why)
}

// failed tells whether an attempt has failed. One without a lease cannot be told
// from the next, and is forgotten soon.
func (p *Puller) failed(a attempt) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.decided[a]
	return ok && (a.lease != "" || time.Since(at) < time.Minute)
}

func attemptOf(ctx context.Context, ns string, m *manifest) attempt {
	lease, _ := leases.FromContext(ctx)
	return attempt{ns, lease, m.desc.Digest}
}
