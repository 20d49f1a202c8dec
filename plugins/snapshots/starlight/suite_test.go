package starlight_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/starlight-delta/starlight/plugins/snapshots/starlight"
)

// suite runs containerd's suite for snapshotters. It lets only those of some names
// off renaming directories of lower layers, and it is overlayfs that cannot.
func suite(t *testing.T, c starlight.Config, wrap func(t *testing.T, root string, l *lazy, s *starlight.Snapshotter) (snapshots.Snapshotter, func() error, error)) {
	testsuite.SnapshotterSuite(t, "overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		c := c
		c.Root = root
		l := newLazy(t)
		s, err := starlight.New(c, l)
		if err != nil {
			return nil, nil, err
		}
		return wrap(t, root, l, s)
	})
}

func direct(_ *testing.T, _ string, _ *lazy, s *starlight.Snapshotter) (snapshots.Snapshotter, func() error, error) {
	return s, s.Close, nil
}

// throughMetadata is what clients see.
func throughMetadata(_ *testing.T, root string, _ *lazy, s *starlight.Snapshotter) (snapshots.Snapshotter, func() error, error) {
	db, err := bolt.Open(filepath.Join(root, "meta.db"), 0o600, nil)
	if err != nil {
		return nil, nil, err
	}
	m := metadata.NewDB(db, nil, map[string]snapshots.Snapshotter{"starlight": s}).Snapshotter("starlight")
	return m, func() error { return errors.Join(m.Close(), s.Close(), db.Close()) }, nil
}

// onLazyParent puts a lazy chain without files below every snapshot: all that the
// suite finds out about stacks holds for those that end in one.
func onLazyParent(t *testing.T, root string, l *lazy, s *starlight.Snapshotter) (snapshots.Snapshotter, func() error, error) {
	// A directory of its own, which goes after the mounts on it.
	l.dir = filepath.Join(root, "lazy-test")
	chain := l.add(t, "empty", nil)
	if err := os.MkdirAll(filepath.Join(l.dir, "objects"), 0o700); err != nil {
		return nil, nil, err
	}
	lp := &lazyParent{s, adopt(t, s, chain, "")}
	return lp, lp.Close, nil
}

func TestSuite(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		config starlight.Config
		wrap   func(*testing.T, string, *lazy, *starlight.Snapshotter) (snapshots.Snapshotter, func() error, error)
	}{
		"default":        {starlight.Config{AsyncRemove: true}, direct},
		"sync":           {starlight.Config{}, direct},
		"remap":          {starlight.Config{AsyncRemove: true, RemapIDs: true}, direct},
		"volatile":       {starlight.Config{AsyncRemove: true, MountOptions: []string{"volatile"}}, direct},
		"metadata":       {starlight.Config{AsyncRemove: true}, throughMetadata},
		"on lazy parent": {starlight.Config{}, onLazyParent},
		"on lazy, remap": {starlight.Config{RemapIDs: true}, onLazyParent},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name != "default" && name != "on lazy parent" {
				t.Skip("a variant of another")
			}
			suite(t, c.config, c.wrap)
		})
	}
}

// lazyParent makes base the parent of snapshots that have none, and hides it.
type lazyParent struct {
	*starlight.Snapshotter
	base string
}

func (l *lazyParent) parent(p string) string {
	if p == "" {
		return l.base
	}
	return p
}

func (l *lazyParent) hide(i snapshots.Info) snapshots.Info {
	if i.Parent == l.base {
		i.Parent = ""
	}
	return i
}

func (l *lazyParent) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return l.Snapshotter.Prepare(ctx, key, l.parent(parent), opts...)
}

func (l *lazyParent) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return l.Snapshotter.View(ctx, key, l.parent(parent), opts...)
}

func (l *lazyParent) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	i, err := l.Snapshotter.Stat(ctx, key)
	return l.hide(i), err
}

func (l *lazyParent) Update(ctx context.Context, i snapshots.Info, fields ...string) (snapshots.Info, error) {
	i, err := l.Snapshotter.Update(ctx, i, fields...)
	return l.hide(i), err
}

// Walk filters after hiding.
func (l *lazyParent) Walk(ctx context.Context, fn snapshots.WalkFunc, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return err
	}
	return l.Snapshotter.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		i = l.hide(i)
		if i.Name == l.base || !filter.Match(filters.AdapterFunc(func(path []string) (string, bool) {
			switch path[0] {
			case "name":
				return i.Name, true
			case "parent":
				return i.Parent, i.Parent != ""
			case "kind":
				return strings.ToLower(i.Kind.String()), true
			}
			v, ok := i.Labels[strings.Join(path[1:], ".")]
			return v, ok
		})) {
			return nil
		}
		return fn(ctx, i)
	})
}

// Close takes the mounts away that containers would go on with.
func (l *lazyParent) Close() error {
	ctx := context.Background()
	for range 200 { // deeper than any stack of the suite
		var keys []string
		if err := l.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			keys = append(keys, i.Name)
			return nil
		}); err != nil && !errdefs.IsNotFound(err) {
			break // closed before, which the suite tries
		}
		removed := 0
		for _, k := range keys {
			if l.Remove(ctx, k) == nil {
				removed++
			}
		}
		if removed == 0 {
			break
		}
	}
	return l.Snapshotter.Close()
}
