package starlight

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/plugins"
	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
)

// Prepare makes an active snapshot. If its label containerd.io/snapshot.ref names
// a chain that the engine knows, that is committed at once, and the answer is
// ErrAlreadyExists: there is nothing to unpack.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	base, err := infoOf(opts)
	if err != nil {
		return nil, err
	}
	if target := base.Labels[plugins.LabelTargetSnapshot]; target != "" && s.engine != nil {
		release := s.seek(ctx, digest.Digest(target), base.Labels)
		defer release()
		known, err := s.adopt(ctx, key, parent, digest.Digest(target), opts)
		if err != nil {
			return nil, err
		}
		if known {
			return nil, fmt.Errorf("target snapshot %q: %w", target, errdefs.ErrAlreadyExists)
		}
	}
	if chain := unpackedChain(key); chain != "" && base.Labels[plugins.LabelTargetSnapshot] == "" {
		if p := s.puller.Load(); p != nil {
			(*p).Unpacks(ctx, chain)
		}
	}
	return s.create(ctx, snapshots.KindActive, key, parent, base, opts)
}

func (s *Snapshotter) seek(ctx context.Context, chain digest.Digest, labels map[string]string) (release func()) {
	if p := s.puller.Load(); p != nil && chain.Validate() == nil {
		return (*p).Seek(ctx, chain, labels)
	}
	return func() {}
}

// unpackedChain returns the chain that a key says to be unpacked, which is of the
// form snapshots.UnpackKeyFormat with a prefix of metadata; "" if there is none.
func unpackedChain(key string) digest.Digest {
	last := key[strings.LastIndexByte(key, '/')+1:]
	_, name, ok := strings.Cut(last, " ")
	chain := digest.Digest(name)
	if !ok || !strings.HasPrefix(last, snapshots.UnpackKeyPrefix+"-") || chain.Validate() != nil {
		return ""
	}
	return chain
}

// View makes a read-only snapshot.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	base, err := infoOf(opts)
	if err != nil {
		return nil, err
	}
	return s.create(ctx, snapshots.KindView, key, parent, base, opts)
}

func infoOf(opts []snapshots.Opt) (info snapshots.Info, err error) {
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return snapshots.Info{}, err
		}
	}
	return info, nil
}

// adopt commits the chain as a snapshot, if the engine knows it. Namespaces
// share the snapshot: metadata finds it by its labels and its parent.
func (s *Snapshotter) adopt(ctx context.Context, key, parent string, chain digest.Digest, opts []snapshots.Opt) (bool, error) {
	if chain.Validate() != nil {
		return false, nil
	}
	s.sweeping.RLock()
	defer s.sweeping.RUnlock()
	if !s.engine.HasChain(chain) {
		return false, nil
	}
	// The parent is a part of the name: where a lower layer was unpacked before the
	// engine knew the image, the chain has another parent than elsewhere.
	name := fmt.Sprintf("%s-%s", chain, digest.FromString(parent).Encoded()[:12])
	opts = append(slices.Clip(opts), withChain(chain))
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, _, _, err := storage.GetInfo(ctx, name); err == nil || !errdefs.IsNotFound(err) {
			return err
		}
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, opts...); err != nil {
			return err
		}
		_, err := storage.CommitActive(ctx, key, name, snapshots.Usage{}, opts...)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("commit chain %s: %w", chain, err)
	}
	failpoint.Here("chain-committed")
	return true, nil
}

// create makes an active snapshot or a view.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, base snapshots.Info, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	st, err := s.parentStack(ctx, parent)
	if err != nil {
		return nil, err
	}
	// Directories are made before the transaction, which only renames: it blocks
	// all others.
	staged, err := s.stage(ctx, kind, st, base)
	if err != nil {
		return nil, err
	}
	failpoint.Here("snapshot-staged")
	dir := staged
	defer func() {
		if err == nil {
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			log.G(ctx).WithError(err).WithField("path", dir).Warn("failed to remove directory")
		}
	}()

	s.layout.RLock()
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		snap, err := storage.CreateSnapshot(ctx, kind, key, parent, append(slices.Clip(opts), withoutChain)...)
		if err != nil {
			return fmt.Errorf("failed to create snapshot: %w", err)
		}
		if err := os.Rename(staged, s.dir(snap.ID)); err != nil {
			return err
		}
		failpoint.Here("snapshot-renamed")
		dir = s.dir(snap.ID)
		st.snapshot, st.info, st.optimizer = snap, base, base.Labels[plugins.LabelOptimizer]
		return nil
	})
	s.layout.RUnlock()
	if err != nil {
		return nil, err
	}

	failpoint.Here("snapshot-created")
	mounts, err := s.mounts(ctx, st)
	failpoint.Here("snapshot-mounted")
	if err != nil {
		// The caller has no snapshot, so the key must be free again.
		if rerr := s.forget(context.WithoutCancel(ctx), key); rerr != nil {
			log.G(ctx).WithError(rerr).WithField("key", key).Warn("failed to undo a snapshot")
		}
		return nil, err
	}
	return mounts, nil
}

func (s *Snapshotter) forget(ctx context.Context, key string) error {
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, _, err := storage.Remove(ctx, key)
		return err
	})
}

// stage makes the directory of a snapshot-to-be.
func (s *Snapshotter) stage(ctx context.Context, kind snapshots.Kind, st *stack, base snapshots.Info) (_ string, err error) {
	dir, err := os.MkdirTemp(filepath.Join(s.config.Root, "staging"), "new-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir) // or at the next start
		}
	}()
	upper := filepath.Join(dir, "fs")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return "", err
	}
	if kind == snapshots.KindActive {
		if err := os.Mkdir(filepath.Join(dir, "work"), 0o711); err != nil {
			return "", err
		}
	}
	ids, err := idMapOf(base.Labels)
	if err != nil {
		return "", err
	}
	if st.chain != "" {
		if err := os.Mkdir(filepath.Join(dir, "merged"), 0o700); err != nil {
			return "", err
		}
		top, err := s.topLower(ctx, st)
		if err != nil {
			return "", err
		}
		return dir, copyRoot(top, upper, ids)
	}
	// As overlayfs does: the owner that the mapping says, or the parent's.
	if ids != nil {
		uid, gid, err := ids.host(0, 0)
		if err != nil {
			return "", err
		}
		return dir, os.Lchown(upper, uid, gid)
	}
	if len(st.uppers) > 0 {
		return dir, copyOwner(s.upper(st.uppers[0]), upper)
	}
	return dir, nil
}

// Commit makes an active snapshot a committed one.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var id string
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, _, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return err
	}
	usage, err := s.upperUsage(ctx, id)
	if err != nil {
		return err
	}
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.CommitActive(ctx, key, name, usage, append(slices.Clip(opts), withoutChain)...); err != nil {
			return fmt.Errorf("failed to commit snapshot %s: %w", key, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	failpoint.Here("snapshot-committed")
	// The directory becomes a lower one of others: nobody may write to it any more
	// through a mount of ours.
	if err := s.unmerge(ctx, id); err != nil {
		log.G(ctx).WithError(err).WithField("key", key).Warn("failed to unmount a committed snapshot")
	}
	return nil
}
