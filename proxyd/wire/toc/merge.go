package toc

import (
	"fmt"
	"slices"
	"strings"
)

// Limits on what Merge accepts; over them it returns ErrInvalid.
const (
	MaxLayers    = 500     // OVL_MAX_STACK: the kernel mounts no more lower directories
	MaxTreeNodes = 4 << 20 // names created by all layers together, implicit directories included
	MaxTreePaths = 1 << 30 // bytes in the paths of all nodes of a tree

	maxPath = 4095 // PATH_MAX less the NUL
	maxBase = 255  // NAME_MAX

	// maxSteps bounds the elements looked up while paths are resolved: symlinks
	// and implicit directories in many layers would make it quadratic otherwise.
	maxSteps = 1 << 28
)

// Merge returns the tree that containerd shows when it unpacks the layers,
// lowest first, with its overlayfs snapshotter on a file system with xattrs and
// POSIX ACLs. An image that cannot be unpacked there gives an error that wraps
// ErrInvalid.
//
// Two things are not containerd's: a directory that no layer lists has the time
// of the same directory in the layer below, or the epoch, where containerd
// leaves the time of unpacking; and a whiteout in a directory in which there is
// nothing to hide leaves no trace, where the kernel lists a name that does not
// exist.
//
// The TOCs are not changed; the tree shares their strings.
func Merge(layers ...*TOC) (*Tree, error) {
	if len(layers) > MaxLayers {
		return nil, fmt.Errorf("%d layers are more than %d: %w", len(layers), MaxLayers, ErrInvalid)
	}
	var (
		b     = &budget{nodes: MaxTreeNodes, steps: maxSteps, paths: MaxTreePaths}
		roots []*dirent // topmost first
	)
	for i, t := range layers {
		if t == nil {
			return nil, fmt.Errorf("layer %d is missing: %w", i, ErrInvalid)
		}
		root, err := unpack(t, roots, b)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		roots = slices.Insert(roots, 0, root)
	}
	return stack(roots, b)
}

// budget is what remains of the limits during a Merge.
type budget struct{ nodes, steps, paths int }

func (b *budget) node() error {
	if b.nodes--; b.nodes < 0 {
		return fmt.Errorf("more than %d names: %w", MaxTreeNodes, ErrInvalid)
	}
	return nil
}

func (b *budget) step() error {
	if b.steps--; b.steps < 0 {
		return fmt.Errorf("too many symlinks and implicit directories: %w", ErrInvalid)
	}
	return nil
}

func (b *budget) path(length int) error {
	if b.paths -= length; b.paths < 0 {
		return fmt.Errorf("more than %d bytes of paths: %w", MaxTreePaths, ErrInvalid)
	}
	return nil
}

// dirent is a name in the upper directory of one layer.
type dirent struct {
	*Inode
	children map[string]*dirent // of a directory
	opaque   bool               // trusted.overlay.opaque
}

// whiteout tells whether overlayfs takes d for a whiteout, also when the layer
// has the device itself.
func (d *dirent) whiteout() bool {
	return d.Type == TypeChar && d.DevMajor == 0 && d.DevMinor == 0
}

// stack shows directories, topmost first, as overlayfs mounts them.
func stack(roots []*dirent, b *budget) (*Tree, error) {
	// The attributes of the root are those of the upper directory that the
	// snapshotter makes: entries for the root are not unpacked.
	root := &Node{Inode: &Inode{Type: TypeDir, Mode: 0o755, Nlink: 2}}
	type todo struct {
		node *Node
		dirs []*dirent
		path int // length
	}
	for queue := []todo{{node: root, dirs: roots}}; len(queue) > 0; {
		t := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		names := mergeDir(t.dirs)
		t.node.Children = make([]*Node, 0, len(names))
		for name, m := range names {
			if m.whiteout() {
				continue
			}
			n := &Node{Name: name, Inode: m.Inode}
			t.node.Children = append(t.node.Children, n)
			length := t.path + 1 + len(name)
			if err := b.path(length); err != nil {
				return nil, err
			}
			if n.Type == TypeDir {
				t.node.Nlink++
				queue = append(queue, todo{n, m.dirs, length})
			}
		}
		slices.SortFunc(t.node.Children, func(a, b *Node) int { return strings.Compare(a.Name, b.Name) })
	}
	return &Tree{Root: root}, nil
}

// merged is the topmost dirent of a name, and the directories merged in it.
type merged struct {
	*dirent
	dirs []*dirent
	done bool // nothing below is visible
}

// mergeDir looks up all names of a directory that is a stack of directories.
func mergeDir(dirs []*dirent) map[string]merged {
	size := 0
	for _, d := range dirs {
		size = max(size, len(d.children))
	}
	names := make(map[string]merged, size)
	for _, d := range dirs {
		for name, c := range d.children {
			m, ok := names[name]
			switch {
			case m.done:
				continue
			case c.Type != TypeDir:
				if !ok {
					m.dirent = c
				}
				m.done = true
			case !ok:
				m.dirent = c
				fallthrough
			default:
				m.dirs = append(m.dirs, c)
				m.done = c.opaque
			}
			names[name] = m
		}
	}
	return names
}
