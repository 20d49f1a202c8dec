package starlight

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/plugins"
)

// stack is what a snapshot is mounted from.
type stack struct {
	snapshot storage.Snapshot
	info     snapshots.Info // with its labels
	// uppers are the IDs of its unpacked parents, the nearest first, down to the
	// first lazy one.
	uppers []string
	// chain is that of the first lazy parent, which includes all that is below
	// it. "": there is none.
	chain digest.Digest
	// optimizer is the label that says whether the container is traced.
	optimizer string
}

// parentStack reads the stack on which a new child of parent rests.
func (s *Snapshotter) parentStack(ctx context.Context, parent string) (*stack, error) {
	st := &stack{}
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error { return st.climb(ctx, parent) })
	if err != nil {
		return nil, err
	}
	return st, nil
}

// climb adds parent and its ancestors. It needs a transaction.
func (st *stack) climb(ctx context.Context, parent string) error {
	for parent != "" {
		id, info, _, err := storage.GetInfo(ctx, parent)
		if err != nil {
			return fmt.Errorf("parent %q: %w", parent, err)
		}
		if st.chain = chainOf(info); st.chain != "" {
			return nil
		}
		st.uppers = append(st.uppers, id)
		parent = info.Parent
	}
	return nil
}

// Mounts returns the mounts of an active snapshot or a view. Those that the
// snapshotter makes itself are made again if they have gone, as after a reboot.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	st := &stack{}
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if st.snapshot, err = storage.GetSnapshot(ctx, key); err != nil {
			return fmt.Errorf("failed to get active mount: %w", err)
		}
		if _, st.info, _, err = storage.GetInfo(ctx, key); err != nil {
			return fmt.Errorf("failed to get snapshot info: %w", err)
		}
		return st.climb(ctx, st.info.Parent)
	})
	if err != nil {
		return nil, err
	}
	if st.optimizer = st.info.Labels[plugins.LabelOptimizer]; st.optimizer == "" && st.chain != "" {
		if c := s.containers.Load(); c != nil {
			st.optimizer = (*c).Optimizer(ctx, containerOf(key))
		}
	}
	return s.mounts(ctx, st)
}

// containerOf is the part of a key that clients chose, which for CRI is the ID of the
// container.
func containerOf(key string) string { return key[strings.LastIndexByte(key, '/')+1:] }

func (s *Snapshotter) mounts(ctx context.Context, st *stack) ([]mount.Mount, error) {
	if st.chain == "" {
		return s.plainMounts(st), nil
	}
	if err := s.merge(ctx, st); err != nil {
		return nil, fmt.Errorf("mount snapshot %s on chain %s: %w", st.snapshot.ID, st.chain, err)
	}
	return []mount.Mount{bind(s.merged(st.snapshot.ID), access(st.snapshot.Kind))}, nil
}

// plainMounts are those of containerd's overlayfs snapshotter.
func (s *Snapshotter) plainMounts(st *stack) []mount.Mount {
	var options []string
	if s.config.RemapIDs {
		if v, ok := st.info.Labels[snapshots.LabelSnapshotUIDMapping]; ok {
			options = append(options, "uidmap="+v)
		}
		if v, ok := st.info.Labels[snapshots.LabelSnapshotGIDMapping]; ok {
			options = append(options, "gidmap="+v)
		}
	}
	id, active := st.snapshot.ID, st.snapshot.Kind == snapshots.KindActive
	switch {
	case len(st.uppers) == 0:
		return []mount.Mount{bind(s.upper(id), append(options, access(st.snapshot.Kind))...)}
	case active:
		options = append(options, "workdir="+s.work(id), "upperdir="+s.upper(id))
	case len(st.uppers) == 1:
		return []mount.Mount{bind(s.upper(st.uppers[0]), append(options, "ro")...)}
	}
	options = append(options, "lowerdir="+strings.Join(s.upperPaths(st), ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options, s.config.MountOptions...)}}
}

func (s *Snapshotter) upperPaths(st *stack) []string {
	paths := make([]string, len(st.uppers))
	for i, id := range st.uppers {
		paths[i] = s.upper(id)
	}
	return paths
}

// topLower is the directory whose attributes the root of a new child takes.
func (s *Snapshotter) topLower(ctx context.Context, st *stack) (string, error) {
	if len(st.uppers) > 0 {
		return s.upper(st.uppers[0]), nil
	}
	if s.engine == nil {
		return "", noEngine(st.chain)
	}
	lower, err := s.engine.Lower(ctx, st.chain)
	return lower.Metadata, err
}

func (s *Snapshotter) upperUsage(ctx context.Context, id string) (snapshots.Usage, error) {
	du, err := fs.DiskUsage(ctx, s.upper(id))
	return snapshots.Usage(du), err
}

func bind(source string, options ...string) mount.Mount {
	return mount.Mount{Type: "bind", Source: filepath.Clean(source), Options: append(options, "rbind")}
}

func access(kind snapshots.Kind) string {
	if kind == snapshots.KindView {
		return "ro"
	}
	return "rw"
}
