// Package content is a content store in which some blobs are virtual: recorded,
// listed and readable, but on no disk until somebody reads them.
//
// The layers of a lazily pulled image are virtual. Its manifest and config, and
// everything else, are in the store that this one wraps.
package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/plugins/internal/engine"
	"github.com/starlight-delta/starlight/plugins/internal/keylock"
)

// Engine is what the store needs to know of virtual blobs.
type Engine interface {
	Virtual(d digest.Digest) (engine.BlobInfo, bool)
	WalkVirtual(fn func(engine.BlobInfo) error) error
	FetchBlob(ctx context.Context, d digest.Digest) (io.ReadCloser, error)
	ForgetBlob(d digest.Digest) (bool, error)
}

// Store adds virtual blobs to a content store. It is safe for concurrent use.
type Store struct {
	content.Store // of the blobs that are on the disk
	engine        Engine
	fetching      keylock.Locker // by digest

	mu     sync.Mutex
	held   map[digest.Digest]int // blobs that Delete leaves alone; guarded by mu
	puller Puller                // may be nil; guarded by mu
}

var _ content.Store = (*Store)(nil)

// ingestPrefix begins the refs under which virtual blobs are being fetched. They
// are unknown to metadata, whose garbage collector would abort them.
const ingestPrefix = "starlight-virtual-"

// New wraps inner. What an earlier process did not finish to fetch is dropped.
func New(ctx context.Context, inner content.Store, e Engine) (*Store, error) {
	s := &Store{Store: inner, engine: e, held: map[digest.Digest]int{}}
	err := walkRefs(ctx, inner, func(ref string) error {
		if !strings.HasPrefix(ref, ingestPrefix) {
			return nil
		}
		if err := inner.Abort(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("drop the unfinished ingest %q: %w", ref, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Info tells of virtual blobs as of any other. That makes metadata record them
// in a namespace without a download: they are shared content.
func (s *Store) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	info, err := s.Store.Info(ctx, d)
	if errdefs.IsNotFound(err) {
		if b, ok := s.engine.Virtual(d); ok {
			return virtualInfo(b), nil
		}
	}
	return info, err
}

// Walk calls fn for the blobs on the disk and then for the virtual ones.
func (s *Store) Walk(ctx context.Context, fn content.WalkFunc, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return err
	}
	began := false
	err = s.Store.Walk(ctx, func(info content.Info) error {
		began = true
		return fn(info)
	}, fs...)
	// The local store has no directory before its first blob, which may be virtual.
	if err != nil && (began || !errors.Is(err, iofs.ErrNotExist)) {
		return err
	}
	// Collected first, as fn may delete what it is called for.
	var virtual []content.Info
	err = s.engine.WalkVirtual(func(b engine.BlobInfo) error {
		if info := virtualInfo(b); filter.Match(content.AdaptInfo(info)) {
			virtual = append(virtual, info)
		}
		return ctx.Err()
	})
	if err != nil {
		return fmt.Errorf("list virtual blobs: %w", err)
	}
	for _, info := range virtual {
		// On the disk as well: told already.
		if _, err := s.Store.Info(ctx, info.Digest); err == nil {
			continue
		} else if !errdefs.IsNotFound(err) {
			return err
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

// Update fails for virtual blobs as it does for all blobs of a store without
// labels: below metadata, which keeps them, there is nothing to update.
func (s *Store) Update(ctx context.Context, info content.Info, fieldpaths ...string) (content.Info, error) {
	updated, err := s.Store.Update(ctx, info, fieldpaths...)
	if errdefs.IsNotFound(err) {
		if _, ok := s.engine.Virtual(info.Digest); ok {
			return content.Info{}, fmt.Errorf("update of the virtual blob %s: %w", info.Digest, errdefs.ErrFailedPrecondition)
		}
	}
	return updated, err
}

// Delete removes a blob from the disk and from the virtual ones. Blobs that are
// held stay; the next garbage collection asks again.
func (s *Store) Delete(ctx context.Context, d digest.Digest) error {
	s.mu.Lock()
	held := s.held[d] > 0
	s.mu.Unlock()
	if held {
		return nil
	}
	err := s.Store.Delete(ctx, d)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	was, ferr := s.engine.ForgetBlob(d)
	if ferr != nil {
		return fmt.Errorf("forget the virtual blob %s: %w", d, ferr)
	}
	if was {
		return nil
	}
	return err
}

// Hold keeps blobs from Delete until release is called: a pull has made them
// known, and has not yet recorded them where the garbage collector looks.
func (s *Store) Hold(blobs ...digest.Digest) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range blobs {
		s.held[d]++
	}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, d := range blobs {
			if s.held[d]--; s.held[d] == 0 {
				delete(s.held, d)
			}
		}
	})
}

// WalkStatusRefs lists the ingests that clients may see and metadata may collect.
func (s *Store) WalkStatusRefs(ctx context.Context, fn func(string) error) error {
	return walkRefs(ctx, s.Store, func(ref string) error {
		if strings.HasPrefix(ref, ingestPrefix) {
			return nil
		}
		return fn(ref)
	})
}

// walkRefs calls fn for each ingest. The local store knows its ingests by name; its list of
// statuses fails if a power cut has torn one.
func walkRefs(ctx context.Context, cs content.Store, fn func(string) error) error {
	if w, ok := cs.(interface {
		WalkStatusRefs(context.Context, func(string) error) error
	}); ok {
		return w.WalkStatusRefs(ctx, fn)
	}
	statuses, err := cs.ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("list ingests: %w", err)
	}
	for _, st := range statuses {
		if err := fn(st.Ref); err != nil {
			return err
		}
	}
	return nil
}

// ReaderAt brings a virtual blob to the disk, if nobody has, and opens it.
func (s *Store) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := s.Store.ReaderAt(ctx, desc)
	if !errdefs.IsNotFound(err) {
		return ra, err
	}
	b, ok := s.engine.Virtual(desc.Digest)
	if !ok {
		return nil, err
	}
	if err := s.materialize(ctx, b); err != nil {
		return nil, fmt.Errorf("fetch the virtual blob %s: %w", b.Digest, err)
	}
	return s.Store.ReaderAt(ctx, desc)
}

// materialize fetches a blob. Others that want it wait; if the one who fetches
// gives up, the next of them takes over.
func (s *Store) materialize(ctx context.Context, b engine.BlobInfo) (err error) {
	key := b.Digest.String()
	if err := s.fetching.Lock(ctx, key); err != nil {
		return err
	}
	defer s.fetching.Unlock(key)
	if _, err := s.Store.Info(ctx, b.Digest); !errdefs.IsNotFound(err) {
		return err
	}
	w, err := s.Store.Writer(ctx, content.WithRef(ingestPrefix+key), content.WithDescriptor(ocispec.Descriptor{Size: b.Size}))
	if err != nil {
		return err
	}
	defer func() {
		err = joinClose(err, w)
		if err != nil {
			// The next attempt starts over. What fails to go now goes at the next start.
			_ = s.Abort(context.WithoutCancel(ctx), ingestPrefix+key)
		}
	}()
	r, err := s.engine.FetchBlob(ctx, b.Digest)
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(w, io.LimitReader(r, b.Size+1))
	if err != nil {
		return err
	}
	if n != b.Size {
		return fmt.Errorf("got %d bytes, want %d: %w", n, b.Size, errdefs.ErrDataLoss)
	}
	// Commit compares the digest of what was written.
	if err := w.Commit(ctx, b.Size, b.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return nil
}

func joinClose(err error, c io.Closer) error {
	if cerr := c.Close(); err == nil {
		return cerr
	}
	return err
}

func virtualInfo(b engine.BlobInfo) content.Info {
	return content.Info{Digest: b.Digest, Size: b.Size, CreatedAt: b.Created, UpdatedAt: b.Created}
}
