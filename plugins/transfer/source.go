package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/plugins/internal/engine"
	"github.com/starlight-delta/starlight/plugins/internal/virtual"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// namedFetcher is a source that says what it fetches before it asks anybody.
type namedFetcher interface {
	transfer.ImageFetcher
	Image() string
}

// source is the client's source of an image, answering from the engine. It lives
// as long as one transfer.
type source struct {
	namedFetcher // the client's
	config       Config
	platforms    []ocispec.Platform
	credentials  *credentials
	progress     transfer.ProgressFunc // may be nil
	start        time.Time
	fetches      fetches // from the registry

	mu      sync.Mutex     // guards the following
	pulls   []*engine.Pull // of the platforms that are ours; none any more if it is plain
	fetched bool           // Fetcher has been called while there were pulls
	release []func()
	told    map[*engine.Pull]bool // their layers have been reported complete
	why     error                 // of a pull that is plain
}

var (
	_ transfer.ImageFetcher              = (*source)(nil)
	_ transfer.ImageResolverOptionSetter = (*source)(nil)
)

func newSource(ctx context.Context, c Config, f namedFetcher, p []ocispec.Platform, progress transfer.ProgressFunc) *source {
	return &source{
		namedFetcher: f, config: c, platforms: p, credentials: newCredentials(ctx, f), progress: progress, start: time.Now(),
		told: map[*engine.Pull]bool{},
	}
}

// close ends what the transfer held.
func (s *source) close() {
	s.credentials.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.release {
		f()
	}
	s.release = nil
}

func (s *source) String() string { return fmt.Sprint(s.namedFetcher) }

// SetResolverOptions is for the client's source.
func (s *source) SetResolverOptions(opts ...transfer.ImageResolverOption) {
	if setter, ok := s.namedFetcher.(transfer.ImageResolverOptionSetter); ok {
		setter.SetResolverOptions(opts...)
	}
}

// began tells whether the transfer got beyond Resolve with the engine's answer.
func (s *source) began() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetched
}

func (s *source) current() []*engine.Pull {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pulls
}

// given tells whether the image is left to the client's source.
func (s *source) given() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why != nil
}

// plain leaves the image to the client's source, and says why.
func (s *source) plain(ctx context.Context, why error) {
	ns, _ := namespaces.Namespace(ctx)
	log.G(ctx).WithError(why).WithField("ref", s.Image()).Debug("not a delta pull: the image comes from the registry")
	s.config.Engine.Plain(ns, s.Image(), why)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pulls, s.why = nil, why
}

// logPlain writes the one line that the log has of a pull that was no delta; the
// engine writes that of the others.
func (s *source) logPlain(ctx context.Context, err error) {
	if !s.given() {
		return
	}
	ns, _ := namespaces.Namespace(ctx)
	l := log.G(ctx).WithFields(log.Fields{
		"namespace": ns, "ref": s.Image(), "mode": engine.ModePlain, "reason": s.why.Error(),
		"bytes": s.fetches.bytes.Load(), "roundtrips": s.fetches.requests.Load(), "duration": time.Since(s.start),
	})
	if err != nil {
		l.WithError(err).Warn("image not pulled")
		return
	}
	l.Warn("image pulled, but not as a delta")
}

// Resolve asks the engine, and the registry if the engine cannot.
func (s *source) Resolve(ctx context.Context) (string, ocispec.Descriptor, error) {
	if err := resolvable(s.Image()); err != nil || s.given() {
		return s.namedFetcher.Resolve(ctx) // says the same, as clients expect it
	}
	pulls, err := s.pull(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return "", ocispec.Descriptor{}, err
		}
		s.plain(ctx, err)
		return s.namedFetcher.Resolve(ctx)
	}
	return s.Image(), pulls[0].Target, nil
}

// pull asks the engine for all platforms at once. It fails if none can be had: those that
// can not are left to the registry.
func (s *source) pull(ctx context.Context) ([]*engine.Pull, error) {
	ns, _ := namespaces.Namespace(ctx)
	all, errs := make([]*engine.Pull, len(s.platforms)), make([]error, len(s.platforms))
	var g sync.WaitGroup
	for i, p := range s.platforms {
		g.Go(func() {
			all[i], errs[i] = s.config.Engine.Pull(ctx, engine.PullRequest{
				Namespace:   ns,
				Ref:         s.Image(),
				Platform:    p,
				Also:        i > 0,
				Credentials: s.credentials.get,
				Registry:    fetchWith(s.namedFetcher),
				Ingest:      s.ingest,
			})
		})
	}
	g.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, pull := range all {
		if pull == nil {
			continue
		}
		s.release = append(s.release, pull.Release)
		if len(s.pulls) > 0 && pull.Target.Digest != s.pulls[0].Target.Digest {
			errs[i] = fmt.Errorf("%s was pushed meanwhile: %w", s.Image(), errdefs.ErrUnavailable)
			continue
		}
		s.pulls = append(s.pulls, pull)
		if h := s.config.Holder; h != nil {
			s.release = append(s.release, h.Hold(digests(pull.Layers)...))
		}
	}
	if len(s.pulls) == 0 {
		return nil, errors.Join(errs...)
	}
	for i, err := range errs {
		if err != nil {
			log.G(ctx).WithError(err).WithFields(log.Fields{"ref": s.Image(), "platform": platforms.Format(s.platforms[i])}).
				Warn("a platform is not pulled as a delta")
		}
	}
	return s.pulls, nil
}

// fetchWith fetches as the client of f would; also after the transfer.
func fetchWith(f namedFetcher) func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
	return func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		fetcher, err := f.Fetcher(ctx, f.Image())
		if err != nil {
			return nil, err
		}
		return fetcher.Fetch(ctx, desc)
	}
}

// ingest tells the client why its pull waits.
func (s *source) ingest(p wire.Progress) {
	if s.progress != nil {
		s.progress(transfer.Progress{Event: fmt.Sprintf("The proxy reads the image (%d of %d MB)", p.Done/1e6, p.Total/1e6)})
	}
}

// Fetcher records the layers of the image in the namespace, under the lease of
// the transfer, and returns a fetcher for the rest. In a second namespace nothing
// may be left to be fetched, so it is done here and not on a Fetch.
func (s *source) Fetcher(ctx context.Context, ref string) (transfer.Fetcher, error) {
	inner, err := s.namedFetcher.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	inner = countingFetcher{inner, &s.fetches}
	pulls := s.current()
	if len(pulls) == 0 {
		return inner, nil
	}
	s.mu.Lock()
	s.fetched = true
	s.mu.Unlock()
	for _, pull := range pulls {
		err := virtual.Record(ctx, s.config.Content, ref, virtual.Layers(pull.Layers, pull.DiffIDs), func(layer ocispec.Descriptor) {
			s.report(ctx, "waiting", pull, layer, 0)
		})
		if err != nil {
			return nil, err
		}
	}
	return &fetcher{inner: inner, source: s, pulls: pulls}, nil
}

// complete reports the layers of all platforms as complete.
func (s *source) complete(ctx context.Context) {
	for _, pull := range s.current() {
		s.completed(ctx, pull)
	}
}

// completed reports the layers of a platform as complete, once.
func (s *source) completed(ctx context.Context, pull *engine.Pull) {
	s.mu.Lock()
	told := s.told[pull]
	s.told[pull] = true
	s.mu.Unlock()
	if told {
		return
	}
	for _, layer := range pull.Layers {
		s.report(ctx, "complete", pull, layer, layer.Size)
	}
}

// report sends an event of the kind that the progress watchdog of CRI counts.
func (s *source) report(ctx context.Context, event string, pull *engine.Pull, layer ocispec.Descriptor, done int64) {
	if s.progress == nil {
		return
	}
	s.progress(transfer.Progress{
		Event: event, Name: remotes.MakeRefKey(ctx, layer), Progress: done, Total: layer.Size, Desc: &layer,
		Parents: []string{remotes.MakeRefKey(ctx, pull.Manifest)},
	})
}

// fetcher gives from memory what the engine brought, and the rest from the registry.
type fetcher struct {
	inner  transfer.Fetcher
	source *source
	pulls  []*engine.Pull
}

// Fetch implements transfer.Fetcher.
func (f *fetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	for _, pull := range f.pulls {
		b, ok := pull.Blob(desc.Digest)
		if !ok {
			continue
		}
		if images.IsConfigType(desc.MediaType) {
			// By now the client knows the manifest, under which it shows the layers.
			f.source.completed(ctx, pull)
		}
		return blob{bytes.NewReader(b)}, nil
	}
	return f.inner.Fetch(ctx, desc)
}

// blob can seek, so that an interrupted ingest goes on where it was.
type blob struct{ *bytes.Reader }

func (blob) Close() error { return nil }

// resolvable returns an error for what no registry could resolve.
func resolvable(ref string) error {
	spec, err := reference.Parse(ref)
	if err != nil {
		return err
	}
	if spec.Object == "" {
		return fmt.Errorf("reference %q has neither tag nor digest: %w", ref, errdefs.ErrInvalidArgument)
	}
	return nil
}

func digests(layers []ocispec.Descriptor) []digest.Digest {
	out := make([]digest.Digest, len(layers))
	for i, l := range layers {
		out[i] = l.Digest
	}
	return out
}
