// Package engine owns everything lazy on a node: the objects, the trees made of
// them, what is known of images and layers, and the streams that bring what is
// missing. The transfer, content, snapshot and service plugins are thin views of it.
//
// A pull goes through these files: pull.go asks a proxyd and admits the image
// (image.go), stream.go brings its contents until nothing is missing, demand.go
// brings at once what a reader waits for, registry.go is the source of last resort,
// chain.go mounts trees, sweep.go collects what nobody needs. state.go is what
// survives a restart.
package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins/internal/erofsimg"
	"github.com/starlight-delta/starlight/plugins/internal/lazyfs"
	"github.com/starlight-delta/starlight/plugins/internal/objects"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Config of an Engine.
type Config struct {
	// Root is the directory of the snapshotter; the engine keeps objects/, toc/,
	// trees/, lazy/ and state.db in it.
	Root    string
	Proxies []Proxy
	// ReadTimeout: a read of a missing object fails with EIO when nothing has
	// arrived for its image for so long. 0: never.
	ReadTimeout time.Duration
	// HeaderTimeout bounds the time without any sign of life from a proxyd that owes
	// metadata, StreamTimeout that of one that owes contents.
	HeaderTimeout, StreamTimeout time.Duration
	// ReportTraces sends what was seen of each start to a proxyd.
	ReportTraces bool
	// RequireTOCDigests refuses images whose manifest does not name the TOC of each layer.
	RequireTOCDigests bool
}

// Engine is safe for concurrent use.
type Engine struct {
	cfg     Config
	objects *objects.Store
	state   *state
	metrics *metrics
	tracer  *tracer
	worker  string // random name, see wire.DeltaRequest

	proxyMu sync.RWMutex
	proxies []*proxy // guarded by proxyMu; replaced, never changed

	stacking erofsimg.Stacking // of the root file systems on this kernel
	unfit    error             // why there are none, if nobody wanted any at the start

	// gate is where a pull stays from the making of its inventory until the objects
	// of its answer are claimed, so that two pulls at once never get the same
	// object; and where Sweep is alone.
	gate gate

	ctx    context.Context //nolint:containedctx // of all background work; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	lazyMu sync.Mutex
	lazy   *lazyfs.Server // nil until something is missing
	// broken is called when overlays made of an earlier mount of the lazy file system
	// must be mended; missed: that happened before it was set.
	broken func(context.Context)
	missed bool

	// streaming has the large objects whose pieces are coming.
	streaming sync.Map // toc.Digest → uint32, the piece that came last
	// asked has the objects that readers asked for out of turn.
	asked sync.Map // toc.Digest → struct{}

	mu     sync.Mutex // guards the following fields and those of images
	images map[toc.Digest]*image
	layers map[toc.Digest]*layer
	chains map[digest.Digest]*chain
	blobs  map[digest.Digest]*blob
	refs   map[refKey]*ref
	claims map[toc.Digest]*stream // objects that a stream will bring
	pins   map[digest.Digest]int  // chains of pulls that are not released
	hooks  []func(context.Context, digest.Digest)

	owners map[toc.Digest]share // of all objects of known images

	collect   func(context.Context) error
	collected collected
}

// Open starts the engine: it loads the state, resumes what is incomplete and
// starts the lazy file system. errdefs.ErrNotImplemented: there are proxies, but the
// kernel cannot mount what they bring. The background work logs to ctx's logger, but does
// not end with ctx: Close ends everything but the mounts.
func Open(ctx context.Context, c Config) (_ *Engine, err error) {
	e := &Engine{
		cfg: c, metrics: newMetrics(), worker: rand.Text(),
		images: map[toc.Digest]*image{}, layers: map[toc.Digest]*layer{},
		chains: map[digest.Digest]*chain{}, blobs: map[digest.Digest]*blob{},
		refs: map[refKey]*ref{}, claims: map[toc.Digest]*stream{}, pins: map[digest.Digest]int{},
	}
	e.ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	// Only root may look in: EROFS shows zeros instead of contents, and objects
	// lack the permissions of the files they are part of.
	for dir, mode := range map[string]os.FileMode{c.Root: 0o711, e.tocDir(): 0o700, e.treeDir(): 0o700, e.mountDir(): 0o700, e.lazyState(): 0o700} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, writable(c.Root, err)
		}
	}
	if err := unix.Access(c.Root, unix.W_OK); err != nil {
		return nil, writable(c.Root, &os.PathError{Op: "write to", Path: c.Root, Err: err})
	}
	if err := e.probe(ctx); err != nil {
		return nil, err
	}
	if e.objects, err = objects.Open(c.Root); err != nil {
		return nil, err
	}
	if e.state, err = openState(filepath.Join(c.Root, "state.db")); err != nil {
		return nil, err
	}
	for _, p := range c.Proxies {
		px, err := e.newProxy(p)
		if err != nil {
			return nil, err
		}
		e.proxies = append(e.proxies, px)
	}
	incomplete, err := e.load(ctx)
	if err != nil {
		return nil, err
	}
	e.tidy(ctx)
	if err := e.openTracer(ctx); err != nil {
		return nil, err
	}
	if len(e.proxies) > 0 || len(incomplete) > 0 {
		if _, err := e.startLazy(); err != nil {
			return nil, err
		}
	}
	for _, p := range e.proxies {
		e.keepWarm(p) //nolint:contextcheck // until Close
	}
	for _, img := range incomplete {
		e.background(func(ctx context.Context) { e.resume(ctx, img) })
	}
	return e, nil
}

// probe finds out how the kernel takes root file systems of ours. That it takes
// none is an error only if there would be new ones.
func (e *Engine) probe(ctx context.Context) (err error) {
	if e.stacking, err = erofsimg.Probe(e.mountDir()); err == nil {
		if e.stacking != erofsimg.DataOnly {
			log.G(ctx).Info("overlayfs has no data-only layers here (Linux 6.5 has): objects are ordinary layers, hidden by whiteouts")
		}
		return nil
	}
	if len(e.cfg.Proxies) == 0 {
		e.unfit = err
		log.G(ctx).WithError(err).Debug("this kernel or file system cannot mount lazy images")
		return nil
	}
	return fmt.Errorf("this kernel or file system cannot mount lazy images (EROFS and overlayfs with metacopy are needed; try modprobe erofs overlay): %w: %w", err, errdefs.ErrNotImplemented)
}

// writable says what to do about a root that cannot be used.
func writable(root string, err error) error {
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%w: remount it writable, or set root_path to another directory than %s: %w", err, root, errdefs.ErrFailedPrecondition)
	}
	return err
}

// Close stops all streams and waits for them. Mounts and the lazyfs process stay.
func (e *Engine) Close() error {
	e.cancel()
	var errs []error
	e.lazyMu.Lock()
	if e.lazy != nil {
		errs = append(errs, e.lazy.Close()) // first, for readers start requests
	}
	e.lazyMu.Unlock()
	errs = append(errs, e.closeTracer())
	e.wg.Wait()
	for _, p := range e.proxyList() {
		p.client.Close()
	}
	if e.objects != nil {
		errs = append(errs, e.objects.Close())
	}
	if e.state != nil {
		errs = append(errs, e.state.close())
	}
	return errors.Join(errs...)
}

// Root returns Config.Root.
func (e *Engine) Root() string { return e.cfg.Root }

func (e *Engine) tocDir() string              { return filepath.Join(e.cfg.Root, "toc") }
func (e *Engine) tocPath(d toc.Digest) string { return filepath.Join(e.tocDir(), d.Hex()) }
func (e *Engine) treeDir() string             { return filepath.Join(e.cfg.Root, "trees") }
func (e *Engine) mountDir() string            { return filepath.Join(e.cfg.Root, "mnt") }
func (e *Engine) lazyDir() string             { return filepath.Join(e.cfg.Root, "lazy") }
func (e *Engine) lazyState() string           { return filepath.Join(e.cfg.Root, "lazyfs") }

// background runs fn until the engine closes.
func (e *Engine) background(fn func(context.Context)) {
	e.wg.Go(func() {
		fn(e.ctx)
	})
}

// startLazy starts the lazy file system, once.
func (e *Engine) startLazy() (string, error) {
	e.lazyMu.Lock()
	defer e.lazyMu.Unlock()
	if e.lazy != nil {
		return e.lazyDir(), nil
	}
	s, err := lazyfs.Start(e.ctx, lazyfs.Config{
		Dir: e.lazyDir(), Objects: e.objects.Dir(), Partial: e.objects.PartialDir(), State: e.lazyState(),
		Source: e, Log: log.G(e.ctx),
		OnRemount: func() { e.background(func(context.Context) { e.lazyBroke() }) },
	})
	if err != nil {
		return "", fmt.Errorf("lazy file system: %w", err)
	}
	e.lazy = s
	if !s.Reconnected() {
		e.background(func(context.Context) { e.lazyBroke() })
	}
	return e.lazyDir(), nil
}

// OnBroken registers fn to be called (from a goroutine of the engine) when the lazy
// file system had to be mounted anew, as its process died together with this one or
// the kernel cannot do without it: overlays that were made of the old mount keep
// failing to read what they opened there, until they are remounted.
func (e *Engine) OnBroken(fn func(context.Context)) {
	e.lazyMu.Lock()
	missed := e.missed
	e.broken, e.missed = fn, false
	e.lazyMu.Unlock()
	if missed {
		e.background(fn)
	}
}

func (e *Engine) lazyBroke() {
	e.lazyMu.Lock()
	fn := e.broken
	e.missed = fn == nil
	e.lazyMu.Unlock()
	if fn != nil {
		fn(e.ctx)
	}
}

// OnComplete registers fn to be called (from a goroutine of the engine) when all
// objects of a chain have become local: time to remount.
func (e *Engine) OnComplete(fn func(ctx context.Context, chain digest.Digest)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hooks = append(e.hooks, fn)
}
