package starlight

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// mend is for the time after the lazy file system has died and another one is in its
// place, which overlays that are mounted do not see. Those that nobody uses are
// unmounted, and made anew by Mounts. Of those that a container runs on, the kernel
// forgets what it has opened: what has arrived is found in objects/ then, and what
// arrives later when it is opened next.
func (s *Snapshotter) mend(ctx context.Context) {
	lazy, err := s.restingOn(ctx, func(digest.Digest) bool { return true })
	if err != nil {
		log.G(ctx).WithError(err).Warn("failed to list the snapshots on the lazy file system that has died")
		return
	}
	for id, kind := range lazy {
		if err := s.mendOne(ctx, id, kind); err != nil {
			log.G(ctx).WithError(err).WithField("snapshot", id).
				Warn("failed to remount: files that were opened before the lazy file system died cannot be read; restart the container")
		}
	}
}

func (s *Snapshotter) mendOne(ctx context.Context, id string, kind snapshots.Kind) error {
	if err := s.merging.Lock(ctx, id); err != nil {
		return err
	}
	defer s.merging.Unlock(id)
	if mounted, err := isMountPoint(s.merged(id)); err != nil || !mounted {
		return err
	}
	s.broken.Store(id, struct{}{})
	if gone, err := s.replaceBroken(id); err != nil || gone {
		return err
	}
	log.G(ctx).WithField("snapshot", id).Warn("the lazy file system has died under a container: what has not arrived cannot be opened until it has")
	return remountOverlay(s.merged(id), kind)
}

// replaceBroken unmounts the overlay of a snapshot if it is broken and nobody uses
// it. It tells whether it did. merging is locked for id.
func (s *Snapshotter) replaceBroken(id string) (bool, error) {
	if _, broken := s.broken.Load(id); !broken {
		return false, nil
	}
	gone, err := s.unmountUnused(id)
	if gone {
		s.broken.Delete(id)
	}
	return gone, err
}

// unmountUnused unmounts the overlay of a snapshot if no container has it, and tells
// whether it did.
func (s *Snapshotter) unmountUnused(id string) (bool, error) {
	used, err := usedElsewhere(s.merged(id))
	if err != nil || used {
		return false, err
	}
	// Two overlays must not have one upper directory, hence only now.
	if err := unix.Unmount(s.merged(id), unix.UMOUNT_NOFOLLOW); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return false, nil // somebody has a file open in it
		}
		return false, &os.PathError{Op: "unmount", Path: s.merged(id), Err: err}
	}
	return true, nil
}

// usedElsewhere tells whether the file system mounted on path is mounted anywhere
// else, in any mount namespace, as the root of a container is.
func usedElsewhere(path string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return false, err
	}
	seen := map[string]bool{}
	for _, p := range processes {
		ns, err := os.Readlink(filepath.Join(p, "ns/mnt"))
		if err != nil || seen[ns] {
			continue // it has ended, or is a kernel thread
		}
		mounts, err := mountsOf(p)
		if err != nil {
			continue // it has ended
		}
		seen[ns] = true
		for _, m := range mounts {
			if uint32(m.Major) == st.Dev_major && uint32(m.Minor) == st.Dev_minor && m.Mountpoint != path {
				return true, nil
			}
		}
	}
	return false, nil
}

// mountsOf lists what is mounted for a process, by its directory in /proc.
func mountsOf(process string) ([]*mountinfo.Info, error) {
	f, err := os.Open(filepath.Join(process, "mountinfo"))
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	return mountinfo.GetMountsFromReader(f, nil)
}

// detachBelow unmounts everything below a directory, which those who use it keep.
func detachBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, dir+"/"), false
	})
	if err != nil {
		return fmt.Errorf("mounts below %s: %w", dir, err)
	}
	for _, m := range slices.Backward(mounts) { // children come after parents
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return &os.PathError{Op: "unmount", Path: m.Mountpoint, Err: err}
		}
	}
	return nil
}
