// Package starlight is a snapshotter for images whose files may still be on
// their way.
//
// A layer that the engine knows is a committed snapshot without a directory: its
// label LabelChain names the chain ID of which the engine has the tree. Any other
// layer is unpacked into a directory, exactly as by containerd's overlayfs
// snapshotter, and stacks of such layers are handed out as it does.
//
// A stack that rests on a lazy chain is mounted by the snapshotter itself:
//
//	upper:lower…:tree of the chain::objects::lazy file system
//
// and handed out as a bind mount of snapshots/N/merged, because clients read the
// options of an overlay mount and take data-only layers ("::") for mistakes.
package starlight

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/peer"

	"github.com/starlight-delta/starlight/plugins/internal/engine"
	"github.com/starlight-delta/starlight/plugins/internal/keylock"
)

// upperdirLabel tells where the changes of a snapshot are, as overlayfs does.
const upperdirLabel = "containerd.io/snapshot/overlay.upperdir"

// Engine is what the snapshotter needs of lazy chains.
type Engine interface {
	HasChain(chain digest.Digest) bool
	Lower(ctx context.Context, chain digest.Digest) (engine.Lower, error)
	Usage(ctx context.Context, chain, parent digest.Digest) (size, inodes int64, err error)
	OnComplete(fn func(ctx context.Context, chain digest.Digest))
	OnBroken(fn func(ctx context.Context))
	OnCollect(fn func(ctx context.Context) error)
	Sweep(ctx context.Context, live []digest.Digest) error
	// Trace returns the directory to take the contents from if a start is to be
	// traced, or "". EndTrace is called when the mount of the snapshot has gone.
	Trace(ctx context.Context, snapshot string, chain digest.Digest, label string) string
	EndTrace(ctx context.Context, snapshot string)
}

// Puller gets images whose layers clients prepare of their own accord.
type Puller interface {
	// Seek makes the engine know a chain, if it can, until release is called.
	Seek(ctx context.Context, chain digest.Digest, labels map[string]string) (release func())
	// Unpacks is told that a chain is unpacked by a client that cannot do without.
	Unpacks(ctx context.Context, chain digest.Digest)
}

// Containers knows the containers that snapshots belong to.
type Containers interface {
	// Optimizer is what the pod or the image of a container says about tracing it, as the
	// value of plugins.LabelOptimizer; "" if there is no such container, or none yet.
	Optimizer(ctx context.Context, id string) string
}

// Config of a Snapshotter. All but Root are as for containerd's overlayfs.
type Config struct {
	Root string
	// UpperdirLabel adds the label containerd.io/snapshot/overlay.upperdir.
	UpperdirLabel bool
	// AsyncRemove leaves directories of removed snapshots to Cleanup.
	AsyncRemove bool
	// MountOptions of all overlay mounts.
	MountOptions []string
	// RemapIDs serves snapshots with ID mappings by idmapped mounts.
	RemapIDs bool
}

// Snapshotter implements snapshots.Snapshotter and snapshots.Cleaner.
type Snapshotter struct {
	config Config
	engine Engine // nil: no snapshot is lazy
	ms     *storage.MetaStore
	// puller and containers are set once all plugins are there.
	puller     atomic.Pointer[Puller]
	containers atomic.Pointer[Containers]

	merging keylock.Locker // of snapshots/N/merged, by N
	traced  sync.Map       // N → struct{}: its container is traced, or its labels were heeded
	broken  sync.Map       // N → struct{}: its overlay rests on a lazy file system that has died

	// sweeping is held for reading while a lazy chain becomes a snapshot, and for
	// writing while the engine drops chains that are none.
	sweeping sync.RWMutex
	// layout is held for reading while a new snapshot gets its directory, and for
	// writing while directories that belong to none are looked for.
	layout sync.RWMutex
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshotter in config.Root. Without an engine every snapshot is
// a plain one.
func New(config Config, e Engine) (*Snapshotter, error) {
	root := config.Root
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	if ok, err := fs.SupportsDType(root); err != nil {
		return nil, err
	} else if !ok {
		return nil, fmt.Errorf("%s does not support d_type: overlayfs needs it", root)
	}
	// What was being made when the last process ended belongs to nobody. Never
	// through mounts: ID-mapped layers may still be there.
	if err := detachBelow(filepath.Join(root, "staging")); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(filepath.Join(root, "staging")); err != nil {
		return nil, err
	}
	for _, d := range []string{"snapshots", "staging"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
	}
	config.MountOptions = mountOptions(root, config.MountOptions)
	ms, err := storage.NewMetaStore(filepath.Join(root, "metadata.db"))
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{config: config, engine: e, ms: ms}
	if err := s.removeOrphans(context.Background()); err != nil {
		return nil, errors.Join(err, ms.Close())
	}
	if e != nil {
		e.OnComplete(s.remount)
		e.OnBroken(s.mend)
		e.OnCollect(s.Cleanup)
	}
	return s, nil
}

// SetPuller sets who is asked for chains that the engine does not know.
func (s *Snapshotter) SetPuller(p Puller) { s.puller.Store(&p) }

// SetContainers sets who knows containers.
func (s *Snapshotter) SetContainers(c Containers) { s.containers.Store(&c) }

// mountOptions adds what this kernel wants to the configured options.
func mountOptions(root string, configured []string) []string {
	options := slices.Clone(configured)
	if !hasOption(options, "userxattr") {
		need, err := overlayutils.NeedsUserXAttr(root)
		if err != nil {
			log.L.WithError(err).Warnf("cannot detect whether overlayfs needs userxattr, assuming %v", need)
		}
		if need {
			options = append(options, "userxattr")
		}
	}
	// The last of two contradicting options wins: a configured one must stay alone.
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil && !hasOption(options, "index") {
		options = append(options, "index=off")
	}
	return options
}

func hasOption(options []string, key string) bool {
	return slices.ContainsFunc(options, func(o string) bool {
		k, _, _ := strings.Cut(o, "=")
		return k == key
	})
}

// Stat returns the info of a snapshot.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	var (
		id   string
		info snapshots.Info
	)
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return snapshots.Info{}, err
	}
	if chainOf(info) != "" && byCRI(ctx) {
		info.Kind = snapshots.KindActive
	}
	return s.labelled(id, info), nil
}

// byCRI tells whether it is CRI that collects what snapshots take: the only one to ask for
// its namespace from inside the process. CRI asks for the usage of a committed snapshot
// once, and that of a lazy one changes, as its contents arrive and as others leave that
// it shares them with. The usage of active ones is asked for each time.
func byCRI(ctx context.Context) bool {
	ns, _ := namespaces.Namespace(ctx)
	_, remote := peer.FromContext(ctx)
	return ns == "k8s.io" && !remote
}

// Update changes labels, but never those by which the snapshotter knows its own.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	var id string
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, old, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		info, err = storage.UpdateInfo(ctx, keepChain(info, old), fieldpaths...)
		if err != nil {
			return err
		}
		id, _, _, err = storage.GetInfo(ctx, info.Name)
		return err
	})
	if err != nil {
		return snapshots.Info{}, err
	}
	return s.labelled(id, info), nil
}

// Usage of an active snapshot is that of its directory; of a committed one what
// it was at the commit; of a lazy one what has arrived and its parent lacks.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	var (
		id     string
		info   snapshots.Info
		usage  snapshots.Usage
		parent digest.Digest
	)
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if id, info, usage, err = storage.GetInfo(ctx, key); err != nil || info.Parent == "" {
			return err
		}
		_, p, _, err := storage.GetInfo(ctx, info.Parent)
		parent = chainOf(p)
		return err
	})
	if err != nil {
		return snapshots.Usage{}, err
	}
	if chain := chainOf(info); chain != "" {
		if s.engine == nil {
			return snapshots.Usage{}, noEngine(chain)
		}
		size, inodes, err := s.engine.Usage(ctx, chain, parent)
		return snapshots.Usage{Size: size, Inodes: inodes}, err
	}
	if info.Kind == snapshots.KindActive {
		du, err := fs.DiskUsage(ctx, s.upper(id))
		return snapshots.Usage(du), err
	}
	return usage, nil
}

// Walk calls fn for each snapshot that matches one of the filters.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		if !s.config.UpperdirLabel {
			return storage.WalkInfo(ctx, fn, filters...)
		}
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			return fn(ctx, s.labelled(id, info))
		}, filters...)
	})
}

// read runs fn in a read transaction. Before the first snapshot there is nothing
// to read, which is no error.
func (s *Snapshotter) read(ctx context.Context, fn func(context.Context) error) error {
	return s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		if _, err := storage.IDMap(ctx); errdefs.IsNotFound(err) {
			return nil
		}
		return fn(ctx)
	})
}

// Close closes the metadata. Mounts stay: containers run on them.
func (s *Snapshotter) Close() error { return s.ms.Close() }

func (s *Snapshotter) labelled(id string, info snapshots.Info) snapshots.Info {
	if !s.config.UpperdirLabel || chainOf(info) != "" {
		return info
	}
	if info.Labels == nil {
		info.Labels = map[string]string{}
	}
	info.Labels[upperdirLabel] = s.upper(id)
	return info
}

func (s *Snapshotter) dir(id string) string    { return filepath.Join(s.config.Root, "snapshots", id) }
func (s *Snapshotter) upper(id string) string  { return filepath.Join(s.dir(id), "fs") }
func (s *Snapshotter) work(id string) string   { return filepath.Join(s.dir(id), "work") }
func (s *Snapshotter) merged(id string) string { return filepath.Join(s.dir(id), "merged") }
