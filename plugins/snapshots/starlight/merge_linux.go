package starlight

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins"
	"github.com/starlight-delta/starlight/plugins/internal/erofsimg"
)

// merge mounts the stack of a snapshot on its directory merged, unless it is.
func (s *Snapshotter) merge(ctx context.Context, st *stack) error {
	if s.engine == nil {
		return noEngine(st.chain)
	}
	id := st.snapshot.ID
	if err := s.merging.Lock(ctx, id); err != nil {
		return err
	}
	defer s.merging.Unlock(id)
	if mounted, err := isMountPoint(s.merged(id)); err != nil {
		return err
	} else if mounted {
		gone, err := s.replaceBroken(id)
		if err == nil && !gone && s.traceLate(st) {
			gone, err = s.unmountUnused(id)
		}
		if err != nil || !gone {
			return err
		}
	}
	lower, err := s.engine.Lower(ctx, st.chain)
	if err != nil {
		return err
	}
	lowers := append(s.upperPaths(st), lower.Metadata)
	ids, err := idMapOf(st.info.Labels)
	if err != nil {
		return err
	}
	if ids != nil && s.config.RemapIDs {
		mapped, release, err := s.mapLowers(lowers, ids)
		if err != nil {
			return err
		}
		// The overlay keeps what it was mounted from.
		defer release()
		lowers = mapped
	}
	o := overlay{lowers: lowers, data: lower.Data, stacking: lower.Stacking, options: s.config.MountOptions}
	if st.snapshot.Kind == snapshots.KindActive {
		o.upper, o.work = s.upper(id), s.work(id)
		// Before the first mount of a container only: what it has opened stays open.
		if dir := s.engine.Trace(ctx, id, st.chain, st.optimizer); dir != "" {
			o.data = []string{dir}
			s.traced.Store(id, struct{}{})
		}
	}
	err = o.mount(s.config.Root, s.merged(id))
	if err != nil {
		s.engine.EndTrace(ctx, id)
	}
	return err
}

// traceLate tells whether a container is to be traced, for a reason that was not known
// when its snapshot was made, and for the first time only: what is opened then stays
// open.
func (s *Snapshotter) traceLate(st *stack) bool {
	if st.optimizer == "" || st.optimizer == "false" || st.info.Labels[plugins.LabelOptimizer] != "" {
		return false
	}
	_, before := s.traced.LoadOrStore(st.snapshot.ID, struct{}{})
	return !before
}

// unmerge takes the mount of a snapshot away from our sight. Who uses it keeps it.
func (s *Snapshotter) unmerge(ctx context.Context, id string) error {
	if err := s.merging.Lock(ctx, id); err != nil {
		return err
	}
	defer s.merging.Unlock(id)
	s.broken.Delete(id)
	s.traced.Delete(id)
	err := unix.Unmount(s.merged(id), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // no mount, no directory
		err = nil
	}
	if err == nil && s.engine != nil {
		s.engine.EndTrace(ctx, id)
	}
	return err
}

// remount makes the kernel forget which files it opened in the lazy file system:
// the objects have arrived, and are opened where they are from now on.
func (s *Snapshotter) remount(ctx context.Context, chain digest.Digest) {
	on, err := s.restingOn(ctx, func(c digest.Digest) bool { return c == chain })
	if err != nil {
		log.G(ctx).WithError(err).WithField("chain", chain).Warn("failed to list the snapshots to remount")
		return
	}
	for id, kind := range on {
		if err := s.remountOne(ctx, id, kind); err != nil {
			log.G(ctx).WithError(err).WithFields(log.Fields{"chain": chain, "snapshot": id}).
				Warn("failed to remount: files that were opened early are read through FUSE until the container ends")
		}
	}
}

func (s *Snapshotter) remountOne(ctx context.Context, id string, kind snapshots.Kind) error {
	if err := s.merging.Lock(ctx, id); err != nil {
		return err
	}
	defer s.merging.Unlock(id)
	if mounted, err := isMountPoint(s.merged(id)); err != nil || !mounted {
		return err
	}
	return remountOverlay(s.merged(id), kind)
}

func remountOverlay(merged string, kind snapshots.Kind) error {
	flags := uintptr(unix.MS_REMOUNT)
	if kind == snapshots.KindView {
		flags |= unix.MS_RDONLY
	}
	return unix.Mount("overlay", merged, "overlay", flags, "")
}

// restingOn lists the IDs of the active snapshots and views on certain lazy chains.
func (s *Snapshotter) restingOn(ctx context.Context, want func(digest.Digest) bool) (map[string]snapshots.Kind, error) {
	on := map[string]snapshots.Kind{}
	err := s.read(ctx, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			if info.Kind == snapshots.KindCommitted {
				return nil
			}
			var st stack
			if err := st.climb(ctx, info.Parent); err != nil || st.chain == "" || !want(st.chain) {
				return err
			}
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			on[id] = info.Kind
			return err
		})
	})
	return on, err
}

// overlay is an overlay mount whose contents are in layers of their own.
type overlay struct {
	upper, work  string // or "" for a read-only one
	lowers, data []string
	stacking     erofsimg.Stacking
	options      []string
}

// mount mounts o on target. Paths become relative to root if the kernel would
// otherwise not take them: all options must fit into a page.
func (o *overlay) mount(root, target string) error {
	var flags uintptr
	if o.upper == "" {
		flags = unix.MS_RDONLY
	}
	options := o.render(func(p string) string { return p })
	if len(options) < os.Getpagesize() {
		return mountOverlay(target, flags, options)
	}
	options = o.render(func(p string) string {
		if rel, err := filepath.Rel(root, p); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
		return p
	})
	if len(options) >= os.Getpagesize() {
		return fmt.Errorf("%d layers take %d bytes of mount options, and the kernel takes %d",
			len(o.lowers), len(options), os.Getpagesize()-1)
	}
	return inDirectory(root, func() error { return mountOverlay(target, flags, options) })
}

// render renders the options of mount(2), each path through name.
func (o *overlay) render(name func(string) string) string {
	var b strings.Builder
	named := func(paths []string) []string {
		paths = slices.Clone(paths)
		for i, p := range paths {
			paths[i] = name(p)
		}
		return paths
	}
	b.WriteString("lowerdir=" + o.stacking.Lowerdir(named(o.lowers), named(o.data)))
	if o.upper != "" {
		b.WriteString(",upperdir=" + name(o.upper) + ",workdir=" + name(o.work))
	}
	for _, opt := range o.options {
		b.WriteString("," + opt)
	}
	// Last, as the last wins: without them the files have no contents.
	b.WriteString(",metacopy=on,redirect_dir=on")
	return b.String()
}

func mountOverlay(target string, flags uintptr, options string) error {
	if err := unix.Mount("overlay", target, "overlay", flags, options); err != nil {
		return &os.PathError{Op: "mount overlay (" + options + ")", Path: target, Err: err}
	}
	return nil
}

// inDirectory runs fn on a thread of its own with another working directory.
func inDirectory(dir string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// Not unlocked: the thread, unlike all others in its working directory,
		// ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare the working directory: %w", err)
			return
		}
		if err := unix.Chdir(dir); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// mapLowers mounts each directory once more with the IDs mapped.
func (s *Snapshotter) mapLowers(lowers []string, ids *idMap) (mapped []string, release func(), err error) {
	ns, err := mount.GetUsernsFD(ids.uids, ids.gids)
	if err != nil {
		return nil, nil, fmt.Errorf("user namespace for the ID mapping: %w", err)
	}
	defer ns.Close()
	dir, err := os.MkdirTemp(filepath.Join(s.config.Root, "staging"), "idmap-")
	if err != nil {
		return nil, nil, err
	}
	release = func() {
		for _, m := range mapped {
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
				log.L.WithError(err).WithField("path", m).Warn("failed to unmount an ID-mapped layer")
				return
			}
			_ = os.Remove(m)
		}
		_ = os.Remove(dir)
	}
	for i, l := range lowers {
		target := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(target, 0o700); err != nil {
			release()
			return nil, nil, err
		}
		if err := mount.IDMapMountWithAttrs(l, target, int(ns.Fd()), unix.MOUNT_ATTR_RDONLY, 0); err != nil {
			_ = os.Remove(target)
			release()
			return nil, nil, err
		}
		mapped = append(mapped, target)
	}
	return mapped, release, nil
}

func isMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
