// Package system has the ways of bringing an image to a node and running it that
// are compared with one another. Adding one is one small type.
package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
)

// System is one way.
type System interface {
	// Name in tables and flags.
	Name() string
	// Publish brings the versions of an image to the far end of the link in the
	// form that this system wants, and returns their references.
	Publish(ctx context.Context, w *sandbox.World, versions []corpus.Image) ([]string, error)
	// Node starts a node that has never seen the published image. Only one node
	// of all systems of a world runs at a time.
	Node(ctx context.Context, w *sandbox.World, image, name string) (*Node, error)
}

// Node is a node of a system.
type Node struct {
	*sandbox.Node
	// Snapshotter that images are pulled into.
	Snapshotter string
	// Others are processes of the system besides containerd and its children.
	Others map[string]*process.Process
	// State are the directories besides containerd's root in which the node keeps
	// what it pulled.
	State []string
	// Far are directories at the far end that are removed with the node.
	Far []string
	// Complete waits until all of an image is local, and returns when it was; nil if
	// Pull does.
	Complete func(ctx context.Context, ref string) (time.Time, error)
	// Waited tells how many seconds readers have waited for contents of an image in
	// all, if the system knows.
	Waited func(ctx context.Context, ref string) (float64, error)
}

// Pull pulls an image with what ctr calls a pull.
func (n *Node) Pull(ctx context.Context, ref string) error {
	return n.Node.Pull(ctx, ref, "--snapshotter", n.Snapshotter)
}

// Wait waits until all of an image is local, and returns when it was, or the zero
// time if that was when Pull returned.
func (n *Node) Wait(ctx context.Context, ref string) (time.Time, error) {
	if n.Complete == nil {
		return time.Time{}, nil
	}
	return n.Complete(ctx, ref)
}

// Processes are those that work for the node, by name: containerd and children of
// it that are no shims, and what the system has besides.
func (n *Node) Processes() (map[string]int, error) {
	all := map[string]int{"containerd": n.PID()}
	for name, p := range n.Others {
		all[name] = p.PID()
	}
	children, err := process.Children(n.PID())
	if err != nil {
		return nil, err
	}
	for _, pid := range children {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // it has ended
		}
		// Only the process of the lazy file system is containerd once more.
		if argv0, _, _ := strings.Cut(string(args), "\x00"); filepath.Base(argv0) == "containerd" {
			all["lazyfs"] = pid
		}
	}
	return all, nil
}

// Disk is the space that the node has taken, in bytes.
func (n *Node) Disk() (int64, error) {
	var sum int64
	for _, dir := range append([]string{n.Root}, n.State...) {
		b, err := usage(dir)
		if err != nil {
			return 0, err
		}
		sum += b
	}
	return sum, nil
}

// Stop ends the node. What it had on the disk stays until the world is closed: an ext4
// file system without a journal looks for a minute at each inode that was freed before it
// takes another one (recently_deleted in fs/ext4/ialloc.c), and the next node would pay.
func (n *Node) Stop() error {
	errs := []error{n.Close()}
	for _, p := range n.Others {
		errs = append(errs, p.Stop())
	}
	return errors.Join(errs...)
}

// Remove ends the node and removes what it had.
func (n *Node) Remove() error {
	errs := []error{n.Stop(), n.Node.Remove()}
	for _, dir := range slices.Concat(n.State, n.Far) {
		errs = append(errs, sandbox.RemoveTree(dir))
	}
	return errors.Join(errs...)
}

// usage adds up the blocks of a directory, each inode once, and does not look
// into what is mounted below it.
func usage(dir string) (int64, error) {
	var top unix.Stat_t
	if err := unix.Lstat(dir, &top); err != nil {
		return 0, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	seen := make(map[uint64]bool)
	var walk func(dir string) (int64, error)
	walk = func(dir string) (int64, error) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return 0, err
		}
		var sum int64
		for _, e := range entries {
			p := filepath.Join(dir, e.Name())
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil || st.Dev != top.Dev || seen[st.Ino] {
				continue // gone, mounted, or a further link
			}
			seen[st.Ino] = true
			const block = 512 // what st_blocks counts in, everywhere
			sum += st.Blocks * block
			if e.IsDir() {
				below, err := walk(p)
				if err != nil {
					return 0, err
				}
				sum += below
			}
		}
		return sum, nil
	}
	return walk(dir)
}

// push pushes the layouts of an image as they are.
func push(ctx context.Context, w *sandbox.World, versions []corpus.Image) ([]string, error) {
	var refs []string
	for _, v := range versions {
		ref, err := w.Push(ctx, v.Layout, v.Name, v.Tag)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}
