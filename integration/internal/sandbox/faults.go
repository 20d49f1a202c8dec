package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// Use makes the next Start run other binaries, as an upgrade does.
func (n *Node) Use(b tools.Binaries) { n.c.Binaries = b }

// Snapshotter is the directory of everything lazy on the node.
func (n *Node) Snapshotter() string {
	return filepath.Join(n.Root, "io.containerd.snapshotter.v1.starlight")
}

// DebugSocket is the address of containerd's profiles.
func (n *Node) DebugSocket() string { return filepath.Join(n.Dir, "debug.sock") }

// LazyProcesses lists the processes of the node's lazy file system.
func (n *Node) LazyProcesses() ([]int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range all {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended
		}
		if s := string(b); strings.Contains(s, "starlight-lazyfs\x00") && strings.Contains(s, n.Root+"/") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Mounts lists what is mounted below the directory of the node.
func (n *Node) Mounts() ([]string, error) { return mountsBelow(n.Dir) }

// Disk is a file system of its own in a file, for what one does not do to others.
type Disk struct {
	file, dir string
}

// NewDisk makes an ext4 of some MiB and mounts it where a node with this name will
// have all its data. Call it before StartNode.
func (w *World) NewDisk(node string, mib int) (*Disk, error) {
	d := &Disk{file: filepath.Join(w.Dir, node+".ext4"), dir: filepath.Join(w.Dir, node)}
	if err := os.Mkdir(d.dir, 0o711); err != nil {
		return nil, err
	}
	if err := os.WriteFile(d.file, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(d.file, int64(mib)<<20); err != nil {
		return nil, err
	}
	// Without lazy initialization nothing but the node writes.
	out, err := exec.Command("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.file).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return d, d.Mount()
}

// Mount mounts the disk, which replays its journal after Cut.
func (d *Disk) Mount() error {
	out, err := exec.Command("mount", "-o", "loop", d.file, d.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mount: %w: %s", err, out)
	}
	return nil
}

// Cut does to the file system what a power cut does: what has not been written to the
// device is lost, the journal in memory included. Nothing works on it afterwards.
func (d *Disk) Cut() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const (
		shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN
		noLogFlush = 2
	)
	how := uint32(noLogFlush)
	return unix.IoctlSetPointerInt(int(f.Fd()), shutdown, int(how))
}

// Free is the number of bytes that are free.
func (d *Disk) Free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// PowerCut cuts the power of a node whose disk is d: its disk loses what was not
// written, all its processes end, and nothing is mounted any more. Then the power comes
// back, but containerd is not started.
func (n *Node) PowerCut(d *Disk) error {
	if err := d.Cut(); err != nil {
		return err
	}
	n.Kill()
	killBelow(n.Dir)
	mounts, err := n.Mounts()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) { // children are mounted after parents
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return d.replug()
}

// replug mounts a copy of the disk in the place of what Cut has left. The old file system
// itself may live on in mount namespaces that others on the machine have made.
func (d *Disk) replug() error {
	if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	next := d.file + "+"
	if out, err := exec.Command("cp", "--sparse=always", d.file, next).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	if err := os.Remove(d.file); err != nil {
		return err
	}
	d.file = next
	return d.Mount()
}
