// Package index makes images known before anybody pulls them: those that a registry
// tells of (hooks.go), and those of repositories that are looked at now and then
// (poll.go). It asks registries with credentials of its own, which are used for
// nothing else: whoever pulls such an image is still asked for theirs.
package index

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// waiting is how many references may wait to be indexed.
	waiting = 1024
	// workers index at the same time; the ingester bounds the layers.
	workers = 2
	// looks at a tag that was said to have moved, within some seconds.
	looks = 8
)

// Registry asks registries. *registry.Client is one.
type Registry interface {
	Image(ctx context.Context, ref string, platform ocispec.Platform, creds *wire.Credentials) (*registry.Image, error)
	Tags(ctx context.Context, repo string, creds *wire.Credentials) ([]string, error)
	Forget(repo, tag string)
}

// Preparer makes everything that a request for an image would have to wait for.
// *server.Server is one.
type Preparer interface {
	Prepare(ctx context.Context, img *registry.Image, creds *wire.Credentials) error
}

// Tags remember where tags pointed. meta.Store is one.
type Tags interface {
	PutTag(ctx context.Context, t meta.Tag) error
	Tags(ctx context.Context, repo string) ([]meta.Tag, error)
}

// Move is a tag that points elsewhere than before.
type Move struct {
	Repo, Tag string
	// From is what it pointed to before, zero if it is new, and To what it points to
	// now, all platforms of which are ingested: indexes or manifests.
	From, To toc.Digest
}

// Config of an Indexer.
type Config struct {
	Registry Registry
	Preparer Preparer
	Tags     Tags
	Log      *slog.Logger
	// Platforms of an image to index; those that it has not are left out.
	Platforms []ocispec.Platform
	// Credentials, if not nil, gives those for a registry.
	Credentials func(ctx context.Context, host string) (*wire.Credentials, error)
	// Poll are the repositories that are looked at every Interval.
	Poll     []Repository
	Interval time.Duration
	// Moved, if not nil, is called when a tag has moved.
	Moved func(context.Context, Move)
}

// Indexer indexes in the background. It is safe for concurrent use.
type Indexer struct {
	cfg    Config
	cancel context.CancelFunc
	wg     sync.WaitGroup
	queue  chan string

	mu     sync.Mutex
	queued map[string]toc.Digest // guarded by mu: what they point to, if that was told
}

// New starts an Indexer. It must be closed. Its work ends with ctx, too.
func New(ctx context.Context, cfg Config) *Indexer {
	ctx, cancel := context.WithCancel(ctx)
	x := &Indexer{cfg: cfg, cancel: cancel, queue: make(chan string, waiting), queued: map[string]toc.Digest{}}
	for range workers {
		x.wg.Go(func() { x.work(ctx) })
	}
	if len(cfg.Poll) > 0 {
		x.wg.Go(func() { x.poll(ctx) })
	}
	return x
}

// Close ends what is under way and waits for it.
func (x *Indexer) Close() error {
	x.cancel()
	x.wg.Wait()
	return nil
}

// Add has "host/repo:tag" indexed soon, which points to want if that is not zero. It
// tells whether there is room for it.
func (x *Indexer) Add(ref string, want toc.Digest) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.queued[ref]; ok {
		x.queued[ref] = want
		return true
	}
	select {
	case x.queue <- ref:
		x.queued[ref] = want
		return true
	default:
		return false
	}
}

func (x *Indexer) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case ref := <-x.queue:
			x.mu.Lock()
			want := x.queued[ref]
			delete(x.queued, ref) // from here on it may change again
			x.mu.Unlock()
			if err := background.Guard(func() error { return x.follow(ctx, ref, want) })(); err != nil && ctx.Err() == nil {
				x.cfg.Log.WarnContext(ctx, "not indexed", "ref", ref, "error", err)
			}
		}
	}
}

// errEarly says that a tag points elsewhere than the registry said it does.
var errEarly = errors.New("the tag does not point there yet")

// follow indexes what ref points to. Registries tell of a push before they have set
// its tag, so it looks again for a while.
func (x *Indexer) follow(ctx context.Context, ref string, want toc.Digest) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, 2*time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		top, err := x.index(ctx, ref)
		switch w := (*wire.Error)(nil); {
		case errors.As(err, &w) && w.Code == wire.CodeNotFound && !want.IsZero():
		case err != nil:
			err = backoff.Permanent(err)
		case !want.IsZero() && top != want:
			err = errEarly
		}
		return struct{}{}, err
	}, backoff.WithMaxTries(looks), backoff.WithBackOff(pause))
	if errors.Is(err, errEarly) {
		return nil // it has been pushed again meanwhile
	}
	return err
}

// index ingests what ref points to now, and returns that.
func (x *Indexer) index(ctx context.Context, ref string) (top toc.Digest, err error) {
	began := time.Now()
	repo, tag := split(ref)
	host, _, _ := strings.Cut(repo, "/")
	var creds *wire.Credentials
	if x.cfg.Credentials != nil {
		if creds, err = x.cfg.Credentials(ctx, host); err != nil {
			return top, err
		}
	}
	x.cfg.Registry.Forget(repo, tag) // what clients were told of the tag may be old
	var failed []error
	for _, p := range x.cfg.Platforms {
		img, err := x.cfg.Registry.Image(ctx, ref, p, creds)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if err := x.cfg.Preparer.Prepare(ctx, img, creds); err != nil {
			return top, err
		}
		if top = img.Manifest.Digest; img.Index != nil {
			top = img.Index.Digest
		}
	}
	if top.IsZero() {
		return top, errors.Join(failed...)
	}
	if tag == "" {
		return top, nil
	}
	from, err := x.put(ctx, repo, tag, top)
	if err != nil || from == top {
		return top, err
	}
	x.cfg.Log.InfoContext(ctx, "indexed", "ref", ref, "digest", top.String(), "duration", time.Since(began))
	if x.cfg.Moved != nil {
		x.cfg.Moved(ctx, Move{Repo: repo, Tag: tag, From: from, To: top})
	}
	return top, nil
}

// put records where a tag points, and returns where it did.
func (x *Indexer) put(ctx context.Context, repo, tag string, to toc.Digest) (from toc.Digest, err error) {
	known, err := x.cfg.Tags.Tags(ctx, repo)
	if err != nil {
		return from, fmt.Errorf("tags of %s: %w", repo, err)
	}
	if i := slices.IndexFunc(known, func(t meta.Tag) bool { return t.Name == tag }); i >= 0 {
		from = known[i].Digest
	}
	return from, x.cfg.Tags.PutTag(ctx, meta.Tag{Repo: repo, Name: tag, Digest: to, Seen: time.Now()})
}

// split takes a reference apart; the tag is "" if there is none, or a digest.
func split(ref string) (repo, tag string) {
	if repo, _, ok := strings.Cut(ref, "@"); ok {
		return repo, ""
	}
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[:i], ref[i+1:]
	}
	return ref, ""
}
