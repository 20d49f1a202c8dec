package starlight

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
)

// Remove forgets a snapshot. Its mount goes at once; its directory too, unless
// that is left to Cleanup. What a lazy chain had always goes at Cleanup.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var id string
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		id, _, err = storage.Remove(ctx, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("failed to remove snapshot %s: %w", key, err)
	}
	failpoint.Here("snapshot-forgotten")
	// The snapshot is gone, so nothing below is an error of Remove. Cleanup tries again.
	if s.config.AsyncRemove {
		if err := s.unmerge(ctx, id); err != nil {
			log.G(ctx).WithError(err).WithField("snapshot", id).Warn("failed to unmount a removed snapshot")
		}
		return nil
	}
	s.removeDirectory(ctx, id)
	return nil
}

// Cleanup removes the directories of removed snapshots, and makes the engine drop
// the chains that are no snapshot any more. containerd calls it after each
// garbage collection.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	if err := s.removeOrphans(ctx); err != nil {
		return err
	}
	if s.engine == nil {
		return nil
	}
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	live, err := s.liveChains(ctx)
	if err != nil {
		return err
	}
	return s.engine.Sweep(ctx, live)
}

// removeOrphans removes the directories that belong to no snapshot. It is done at the
// start, too: a directory gets its name in a transaction, and if the process ends before
// the commit, the next snapshot gets the same name.
func (s *Snapshotter) removeOrphans(ctx context.Context) error {
	orphans, err := s.orphans(ctx)
	if err != nil {
		return err
	}
	for _, id := range orphans {
		s.removeDirectory(ctx, id)
	}
	return nil
}

// orphans lists the directories that belong to no snapshot.
func (s *Snapshotter) orphans(ctx context.Context) ([]string, error) {
	s.layout.Lock()
	defer s.layout.Unlock()
	entries, err := os.ReadDir(s.dir(""))
	if err != nil {
		return nil, err
	}
	var ids map[string]string
	err = s.read(ctx, func(ctx context.Context) (err error) {
		ids, err = storage.IDMap(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	var orphans []string
	for _, e := range entries {
		if _, ok := ids[e.Name()]; !ok {
			orphans = append(orphans, e.Name())
		}
	}
	return orphans, nil
}

func (s *Snapshotter) removeDirectory(ctx context.Context, id string) {
	err := s.unmerge(ctx, id)
	failpoint.Here("snapshot-unmounted")
	if err == nil {
		// Never with the mount in place: that would delete through it.
		err = os.RemoveAll(s.dir(id))
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("path", s.dir(id)).Warn("failed to remove directory")
	}
}

func (s *Snapshotter) liveChains(ctx context.Context) ([]digest.Digest, error) {
	seen := map[digest.Digest]struct{}{}
	var live []digest.Digest
	err := s.read(ctx, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			chain := chainOf(info)
			if _, ok := seen[chain]; chain != "" && !ok {
				seen[chain] = struct{}{}
				live = append(live, chain)
			}
			return nil
		})
	})
	return live, err
}
