package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
)

// belongings are what every directory of the snapshotter has; nothing else is removed.
var belongings = []string{"objects", "toc", "trees", "snapshots"}

// resetDirectory removes the directory of the snapshotter. containerd is not running, but
// containers may be: their shims need no containerd.
func resetDirectory(c *cli.Command, root string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return fmt.Errorf("containerd does not run, and its directory cannot be seen (%w): --root names another one, --address another socket", err)
	}
	for _, d := range belongings {
		if st, err := os.Lstat(filepath.Join(root, d)); err != nil || !st.IsDir() {
			return fmt.Errorf("%s has no directory %s: it is not that of the snapshotter starlight, and nothing is removed", root, d)
		}
	}
	own, err := mountsBelow(root)
	if err != nil {
		return err
	}
	users, err := usersOf(root, own)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return fmt.Errorf("containers run from %s:\n%s\nstart containerd, remove them, and try again", root, strings.Join(users, "\n"))
	}
	out := c.Root().Writer
	for _, m := range own {
		if _, err := fmt.Fprintln(out, "unmount "+m.Mountpoint); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(out, "remove "+root); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return nil
	}
	if ok, err := confirm(c, "containerd does not run. Remove?"); err != nil || !ok {
		return err
	}
	for _, m := range own {
		if err := unix.Unmount(m.Mountpoint, 0); err != nil {
			return fmt.Errorf("unmount %s: %w: nothing is removed", m.Mountpoint, err)
		}
	}
	if left, err := mountsBelow(root); err != nil || len(left) > 0 {
		return errors.Join(err, fmt.Errorf("%d mounts are left below %s: nothing is removed", len(left), root))
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(root, e.Name())); err != nil {
			return err
		}
	}
	// It may be the mount point of a disk of its own.
	if err := os.Remove(root); err != nil && !errors.Is(err, unix.EBUSY) {
		return err
	}
	_, err = fmt.Fprintln(out, "removed. containerd's database still names the images: after its next start, ctr image rm them before they are pulled again")
	return err
}

// mountsBelow lists the mounts below a directory, the last one first.
func mountsBelow(root string) ([]*mountinfo.Info, error) {
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, root+"/"), false
	})
	if err != nil {
		return nil, err
	}
	slices.Reverse(all)
	return all, nil
}

// usersOf finds mounts elsewhere, in any mount namespace, of the file systems that are
// mounted below root, or of overlays that have something below root.
func usersOf(root string, own []*mountinfo.Info) ([]string, error) {
	devices := map[[2]int]bool{}
	for _, m := range own {
		devices[[2]int{m.Major, m.Minor}] = true
	}
	pids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{} // mount namespaces
	var users []string
	for _, p := range pids {
		ns, err := os.Readlink(filepath.Join(p, "ns/mnt"))
		if err != nil || seen[ns] {
			continue // it has ended, or is known
		}
		seen[ns] = true
		f, err := os.Open(filepath.Join(p, "mountinfo"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all, err := mountinfo.GetMountsFromReader(f, nil)
		_ = f.Close() // it was read
		if err != nil {
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESRCH) {
				continue // it has ended meanwhile
			}
			return nil, err
		}
		for _, m := range all {
			below := m.Mountpoint == root || strings.HasPrefix(m.Mountpoint, root+"/")
			if below || !devices[[2]int{m.Major, m.Minor}] && !strings.Contains(m.VFSOptions, root+"/") {
				continue
			}
			users = append(users, fmt.Sprintf("%s, of process %s", m.Mountpoint, filepath.Base(p)))
		}
	}
	return users, nil
}
