package transfer

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/defaults"
	bolt "go.etcd.io/bbolt"

	"github.com/starlight-delta/starlight/plugins"
)

// defaultStore is a destination that named no snapshotter, with one.
type defaultStore struct {
	transfer.ImageStorer
	unpacks []transfer.UnpackConfiguration
}

var (
	_ transfer.ImageUnpacker = (*defaultStore)(nil)
	_ transfer.ImageFilterer = (*defaultStore)(nil)
)

func (d *defaultStore) String() string { return fmt.Sprint(d.ImageStorer) }

// UnpackPlatforms returns the platforms with their snapshotter.
func (d *defaultStore) UnpackPlatforms() []transfer.UnpackConfiguration { return d.unpacks }

// ImageFilter is that of the client's destination.
func (d *defaultStore) ImageFilter(f images.HandlerFunc, cs content.Store) images.HandlerFunc {
	if filterer, ok := d.ImageStorer.(transfer.ImageFilterer); ok {
		return filterer.ImageFilter(f, cs)
	}
	return f
}

// NamespaceDefaults sets the label by which clients find the default snapshotter
// of a namespace.
type NamespaceDefaults struct {
	db   database
	done sync.Map // namespaces that have the label, or another value of it
}

// database is the part of *metadata.DB used here.
type database interface {
	View(fn func(*bolt.Tx) error) error
	Update(fn func(*bolt.Tx) error) error
}

var _ Defaults = (*NamespaceDefaults)(nil)

// NewNamespaceDefaults sets the label of all namespaces there are.
func NewNamespaceDefaults(ctx context.Context, db *metadata.DB) (*NamespaceDefaults, error) {
	d := &NamespaceDefaults{db: db}
	var all []string
	err := db.View(func(tx *bolt.Tx) (err error) {
		all, err = metadata.NewNamespaceStore(tx).List(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	for _, ns := range all {
		if err := d.SetDefault(ctx, ns); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// SetDefault sets the label of a namespace, unless somebody has.
func (d *NamespaceDefaults) SetDefault(ctx context.Context, namespace string) error {
	if _, ok := d.done.Load(namespace); ok {
		return nil
	}
	err := d.db.Update(func(tx *bolt.Tx) error {
		store := metadata.NewNamespaceStore(tx)
		labels, err := store.Labels(ctx, namespace)
		if err != nil || labels[defaults.DefaultSnapshotterNSLabel] != "" {
			return err
		}
		return store.SetLabel(ctx, namespace, defaults.DefaultSnapshotterNSLabel, plugins.SnapshotterName)
	})
	if err != nil {
		return fmt.Errorf("set the default snapshotter of namespace %q: %w", namespace, err)
	}
	d.done.Store(namespace, struct{}{})
	return nil
}
