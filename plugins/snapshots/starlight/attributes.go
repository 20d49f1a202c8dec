package starlight

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/sysx"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// copyRoot gives to the upper directory what the root of the file system has
// below: overlayfs takes the attributes of "/" from the uppermost layer.
func copyRoot(from, to string, ids *idMap) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	uid, gid := int(st.Uid), int(st.Gid)
	if ids != nil {
		var err error
		if uid, gid, err = ids.host(st.Uid, st.Gid); err != nil {
			return err
		}
	}
	if err := os.Lchown(to, uid, gid); err != nil {
		return err
	}
	// After chown, which may clear bits.
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: to, Err: err}
	}
	return nil
}

func copyXattrs(from, to string) error {
	names, err := sysx.LListxattr(from)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		return fmt.Errorf("list extended attributes of %s: %w", from, err)
	}
	for _, name := range names {
		// Those of overlayfs itself say how the layer is to be merged.
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		value, err := sysx.LGetxattr(from, name)
		if err == nil {
			err = sysx.LSetxattr(to, name, value, 0)
		}
		// A security label that this file system or policy does not take.
		if err != nil && (!strings.HasPrefix(name, "security.") || !errors.Is(err, unix.ENOTSUP)) {
			return fmt.Errorf("copy the extended attribute %q: %w", name, err)
		}
	}
	return nil
}

func copyOwner(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return fmt.Errorf("failed to stat parent: %w", &os.PathError{Op: "stat", Path: from, Err: err})
	}
	return os.Lchown(to, int(st.Uid), int(st.Gid))
}

// idMap is the ID mapping of a snapshot, as in its labels: lists of
// "container:host:count".
type idMap struct{ uids, gids string }

// idMapOf returns nil if the labels have no mapping.
func idMapOf(labels map[string]string) (*idMap, error) {
	uids, haveUIDs := labels[snapshots.LabelSnapshotUIDMapping]
	gids, haveGIDs := labels[snapshots.LabelSnapshotGIDMapping]
	if !haveUIDs && !haveGIDs {
		return nil, nil
	}
	m := &idMap{uids: uids, gids: gids}
	if _, _, err := m.host(0, 0); err != nil {
		return nil, err
	}
	return m, nil
}

// host maps IDs of a container to those of the host.
func (m *idMap) host(uid, gid uint32) (int, int, error) {
	u, err := toHost(uid, m.uids)
	if err != nil {
		return 0, 0, fmt.Errorf("uid mapping: %w", err)
	}
	g, err := toHost(gid, m.gids)
	if err != nil {
		return 0, 0, fmt.Errorf("gid mapping: %w", err)
	}
	return u, g, nil
}

func toHost(id uint32, mappings string) (int, error) {
	for m := range strings.SplitSeq(mappings, ",") {
		var n [3]uint32
		fields := strings.Split(m, ":")
		if len(fields) != len(n) {
			return 0, fmt.Errorf("%q is not container:host:count: %w", m, errdefs.ErrInvalidArgument)
		}
		for i, f := range fields {
			v, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return 0, fmt.Errorf("%q is not container:host:count: %w", m, errdefs.ErrInvalidArgument)
			}
			n[i] = uint32(v)
		}
		container, host, count := n[0], n[1], n[2]
		if id >= container && uint64(id) < uint64(container)+uint64(count) {
			return int(uint64(host) + uint64(id-container)), nil
		}
	}
	return 0, fmt.Errorf("id %d is not in %q: %w", id, mappings, errdefs.ErrInvalidArgument)
}
