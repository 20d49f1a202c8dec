package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/plugins/internal/lazyfs"
	"github.com/starlight-delta/starlight/plugins/internal/trace"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Optimizer says which containers are traced while they start. All that such a
// container opens goes through a lazy file system of its own, until it ends: that
// costs a process, and reads at the speed of FUSE.
type Optimizer struct {
	On bool `json:"on"`
	// Group of the containers, which are started together and get a joint order.
	Group string `json:"group,omitempty"`
	// Images that are traced, by reference; none: all.
	Images []string `json:"images,omitempty"`
	// Window is how long a start is traced. 0: DefaultWindow.
	Window time.Duration `json:"window,omitempty"`
	// Report sends each trace to a proxyd when it ends.
	Report bool `json:"report,omitempty"`
}

// DefaultWindow is longer than most starts take.
const DefaultWindow = time.Minute

const (
	// maxTracing containers are traced at a time.
	maxTracing = 16
	// maxGroup is the length of the name of a group.
	maxGroup = 100
	// optimizerFile keeps the settings, among the traces.
	optimizerFile = "optimizer.json"
	// remindReports is how often what could not be reported is tried again.
	remindReports = 10 * time.Minute
)

// tracer records starts of containers.
type tracer struct {
	store *trace.Store
	kick  chan struct{} // there is something to report

	reporting sync.Mutex // held while traces are sent

	mu       sync.Mutex // guards the following
	settings Optimizer
	groups   map[string]groupStart
	running  map[string]*recording // by snapshot
	waits    map[toc.Digest]*recording
}

// groupStart is one start of the containers of a group.
type groupStart struct{ first, last time.Time } // when containers began

// recording is a start that is being traced.
type recording struct {
	snapshot string
	group    string
	began    time.Time
	first    time.Time // when the first container of the group began
	of       *image    // nil: of an earlier process
	name     string    // host/repo
	platform string
	chain    digest.Digest
	objects  *pending // object list of the image
	rec      trace.Recorder
	server   *lazyfs.Server // nil if only what readers wait for is seen
	timer    *time.Timer
}

func (e *Engine) traceDir() string { return filepath.Join(e.cfg.Root, "traces") }
func (e *Engine) tracingDir(snapshot string) string {
	return filepath.Join(e.cfg.Root, "tracing", snapshot)
}
func (e *Engine) tracingMount(snapshot string) string {
	return filepath.Join(e.tracingDir(snapshot), "mnt")
}

// openTracer loads the settings, and takes over the file systems of containers that
// were traced when the last process ended. Their traces are over.
func (e *Engine) openTracer(ctx context.Context) (err error) {
	t := &tracer{
		kick: make(chan struct{}, 1), groups: map[string]groupStart{},
		running: map[string]*recording{}, waits: map[toc.Digest]*recording{},
	}
	if t.store, err = trace.Open(e.traceDir()); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(e.traceDir(), optimizerFile))
	if err == nil {
		err = json.Unmarshal(b, &t.settings)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.G(ctx).WithError(err).Warn("settings of the optimizer are lost: it is off")
		t.settings = Optimizer{}
	}
	e.tracer = t
	entries, err := os.ReadDir(e.tracingDir(""))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		snapshot := entry.Name()
		if !lazyfs.Mounted(e.tracingMount(snapshot)) {
			if err := os.RemoveAll(e.tracingDir(snapshot)); err != nil {
				return err
			}
			continue
		}
		s, err := e.traceServer(snapshot, nil)
		if err != nil {
			log.G(ctx).WithError(err).WithField("snapshot", snapshot).Error("a traced container has lost its file system; start it anew")
			continue
		}
		t.running[snapshot] = &recording{snapshot: snapshot, server: s}
	}
	e.OnComplete(e.endWaits)
	e.background(e.reportTraces)
	return nil
}

// closeTracer keeps what was seen so far, and lets go of the file systems.
func (e *Engine) closeTracer() error {
	if e.tracer == nil {
		return nil
	}
	e.tracer.mu.Lock()
	all := e.tracer.all()
	e.tracer.mu.Unlock()
	var errs []error
	for _, tr := range all {
		errs = append(errs, e.keep(tr))
		if tr.server != nil {
			errs = append(errs, tr.server.Close())
		}
	}
	return errors.Join(errs...)
}

// all lists what is being traced. t.mu is held.
func (t *tracer) all() []*recording {
	var out []*recording
	for _, tr := range t.running {
		out = append(out, tr)
	}
	for _, tr := range t.waits {
		out = append(out, tr)
	}
	return out
}

// Optimizer returns the settings.
func (e *Engine) Optimizer() Optimizer {
	e.tracer.mu.Lock()
	defer e.tracer.mu.Unlock()
	return e.tracer.settings
}

// Optimize changes the settings, which outlive the process. Turning it off ends the
// traces under way.
func (e *Engine) Optimize(o Optimizer) error {
	if o.Window < 0 || len(o.Group) > maxGroup {
		return fmt.Errorf("window %v, group of %d bytes: %w", o.Window, len(o.Group), errdefs.ErrInvalidArgument)
	}
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if err := writeDurably(filepath.Join(e.traceDir(), optimizerFile), b); err != nil {
		return err
	}
	t := e.tracer
	t.mu.Lock()
	t.settings = o
	clear(t.groups) // a group is traced anew
	var over []*recording
	if !o.On {
		over = t.all()
	}
	t.mu.Unlock()
	var errs []error
	for _, tr := range over {
		errs = append(errs, e.keep(tr))
	}
	return errors.Join(errs...)
}

// Trace begins a trace if the settings, or the label of a snapshot, say so. It
// returns the directory to mount instead of Lower.Data, or "". The label names a
// group, or is "true" or "false". Nothing that goes wrong keeps a container from
// starting.
func (e *Engine) Trace(ctx context.Context, snapshot string, id digest.Digest, label string) string {
	tr := e.toTrace(id, label)
	if tr == nil {
		return ""
	}
	tr.snapshot = snapshot
	logger := log.G(ctx).WithFields(log.Fields{"snapshot": snapshot, "image": tr.name, "group": tr.group})
	t := e.tracer
	t.mu.Lock()
	if len(t.running) >= maxTracing || t.running[snapshot] != nil {
		t.mu.Unlock()
		logger.WithField("limit", maxTracing).Warn("too many containers are traced: this one is not")
		return ""
	}
	t.running[snapshot] = tr
	window := t.settings.Window
	if window == 0 {
		window = DefaultWindow
	}
	tr.first = t.join(tr.group, tr.began, window)
	t.mu.Unlock()
	server, err := e.traceServer(snapshot, func(a lazyfs.Access) { tr.rec.Add(a.Object, a.Off, a.N, a.At, a.Wait) })
	t.mu.Lock()
	if err == nil {
		tr.server = server
		tr.timer = time.AfterFunc(window, func() {
			if err := e.keep(tr); err != nil {
				log.G(e.ctx).WithError(err).Warn("a trace is lost")
			}
		})
	} else {
		delete(t.running, snapshot)
	}
	t.mu.Unlock()
	if err != nil {
		logger.WithError(err).Warn("a container is not traced")
		_ = os.RemoveAll(e.tracingDir(snapshot)) // or at the next start
		return ""
	}
	logger.Info("a container is traced")
	return e.tracingMount(snapshot)
}

// join adds a container to the start of its group, and returns when that began. After a
// window in which none was added, the next one begins a new start. t.mu is held.
func (t *tracer) join(group string, began time.Time, window time.Duration) time.Time {
	for name, g := range t.groups { // labels name groups for as long as the process lives
		if began.Sub(g.last) > window {
			delete(t.groups, name)
		}
	}
	g := t.groups[group]
	if g.first.IsZero() {
		g.first = began
	}
	g.last = began
	t.groups[group] = g
	return g.first
}

// toTrace is a recording for a container on a chain, or nil.
func (e *Engine) toTrace(id digest.Digest, label string) *recording {
	o := e.Optimizer()
	group := o.Group
	switch label {
	case "":
		if !o.On {
			return nil
		}
	case "true":
	case "false":
		return nil
	default:
		group = label[:min(len(label), maxGroup)]
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var img *image
	for _, i := range e.images {
		if top := i.top(); top != nil && top.id == id && (img == nil || i.rec.Pulled.After(img.rec.Pulled)) {
			img = i
		}
	}
	if img == nil || label == "" && len(o.Images) > 0 && !e.named(img, o.Images) {
		return nil
	}
	r := record(img, img.objectList())
	r.group = group
	return r
}

// record returns a recording of an image that begins now. Engine.mu is held.
func record(img *image, objects *pending) *recording {
	r := &recording{began: time.Now(), of: img, name: img.rec.Name, platform: img.rec.Platform, objects: objects}
	if top := img.top(); top != nil {
		r.chain = top.id
	}
	return r
}

// named tells whether an image is of one of the repositories, or was pulled by
// one of the references. Engine.mu is held.
func (e *Engine) named(img *image, names []string) bool {
	if slices.Contains(names, img.rec.Name) {
		return true
	}
	for k, r := range e.refs {
		if r.img == img && slices.Contains(names, k.ref) {
			return true
		}
	}
	return false
}

// traceServer starts the file system of one container, or connects to it.
func (e *Engine) traceServer(snapshot string, observe func(lazyfs.Access)) (*lazyfs.Server, error) {
	if _, err := e.startLazy(); err != nil { // makes the directory of the index files
		return nil, err
	}
	return lazyfs.Start(e.ctx, lazyfs.Config{
		Dir: e.tracingMount(snapshot), Objects: e.objects.Dir(), Partial: e.objects.PartialDir(),
		State: filepath.Join(e.tracingDir(snapshot), "lazyfs"), Index: lazyfs.IndexDir(e.lazyState()),
		Source: e, Log: log.G(e.ctx), Observe: observe,
	})
}

// EndTrace is called when the mount of a snapshot has gone.
func (e *Engine) EndTrace(ctx context.Context, snapshot string) {
	t := e.tracer
	t.mu.Lock()
	tr := t.running[snapshot]
	delete(t.running, snapshot)
	t.mu.Unlock()
	if tr == nil {
		return
	}
	err := e.keep(tr)
	if tr.server != nil {
		if serr := tr.server.Shutdown(); serr == nil {
			err = errors.Join(err, os.RemoveAll(e.tracingDir(snapshot)))
		} else {
			err = errors.Join(err, serr)
		}
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("snapshot", snapshot).Warn("failed to end a trace")
	}
}

// keep ends the recording and stores the trace, once.
func (e *Engine) keep(tr *recording) error {
	if tr.of == nil {
		return nil
	}
	t := e.tracer
	t.mu.Lock()
	if tr.timer != nil {
		tr.timer.Stop()
	}
	partial := tr.server == nil
	t.mu.Unlock()
	seen := tr.rec.Stop(func(d toc.Digest) (uint32, int64, bool) {
		i, ok := tr.objects.index[d]
		if !ok {
			return 0, 0, false
		}
		return i, tr.objects.list[i].Size, true
	})
	if seen == nil {
		return nil
	}
	seen.Image, seen.Name, seen.Platform, seen.Chain = tr.of.digest, tr.name, tr.platform, tr.chain
	seen.Group, seen.Snapshot, seen.Partial = tr.group, tr.snapshot, partial
	if tr.group != "" && !tr.first.IsZero() {
		seen.Delay = max(seen.Started.Sub(tr.first), 0)
	}
	if err := t.store.Put(seen); err != nil {
		return err
	}
	objects, bytes := seen.Read()
	log.G(e.ctx).WithFields(log.Fields{
		"image": seen.Name, "snapshot": seen.Snapshot, "objects": objects, "bytes": bytes,
		"waited": seen.Wait(), "duration": seen.Duration, "partial": seen.Partial,
	}).Info("a start was traced")
	select {
	case t.kick <- struct{}{}:
	default:
	}
	return nil
}
