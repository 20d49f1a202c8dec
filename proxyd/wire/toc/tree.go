package toc

import (
	"slices"
	"strings"
)

// Tree is the file tree that a chain of layers makes, see [Merge].
type Tree struct {
	// Root is the root directory. It always exists.
	Root *Node
}

// Node is one name in a Tree. Names that are hard links of one another have the
// same *Inode.
type Node struct {
	// Name is the last element of the path; "" for the root.
	Name string
	*Inode
	// Children of a directory, sorted by Name.
	Children []*Node
}

// Inode is what one or more names of a Tree stand for. The fields mean what
// they mean in [Entry], except that Type is never TypeLink.
type Inode struct {
	Type               Type
	Mode               uint32
	UID, GID           uint32
	MtimeSec           int64
	MtimeNsec          uint32
	Link               string // target of a symlink
	DevMajor, DevMinor uint32
	Xattrs             []Xattr // sorted by name
	Object             Digest  // zero unless TypeReg with Size > 0
	Size               int64
	// Nlink is the number that stat(2) shows for a file: the names which its
	// layer gave it, also those that layers above hide. Hence it can be more
	// than the names with this Inode in the Tree. For a directory it is 2 plus
	// the number of its subdirectories.
	Nlink uint32
}

// Lookup returns the node at path, or nil. It does not follow symlinks. The
// path is slash-separated and clean; a leading slash is allowed, and "" and "/"
// are the root.
func (t *Tree) Lookup(path string) *Node {
	n := t.Root
	for path = strings.TrimPrefix(path, "/"); path != ""; {
		var name string
		name, path, _ = strings.Cut(path, "/")
		if n = n.Child(name); n == nil {
			return nil
		}
	}
	return n
}

// Child returns the child of n with the name, or nil.
func (n *Node) Child(name string) *Node {
	i, ok := slices.BinarySearchFunc(n.Children, name, func(c *Node, name string) int {
		return strings.Compare(c.Name, name)
	})
	if !ok {
		return nil
	}
	return n.Children[i]
}

// Walk calls fn for each node: parents before their children, the children of
// a directory in the order of their names. The path has no leading slash; that
// of the root is "". Walk stops at the first error and returns it.
func (t *Tree) Walk(fn func(path string, n *Node) error) error {
	type level struct {
		path string // of the directory, with a slash at the end unless the root
		rest []*Node
	}
	if err := fn("", t.Root); err != nil {
		return err
	}
	// A stack of our own: how deep a tree is, is for the image's author to say.
	stack := []level{{rest: t.Root.Children}}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if len(top.rest) == 0 {
			stack = stack[:len(stack)-1]
			continue
		}
		n := top.rest[0]
		top.rest = top.rest[1:]
		path := top.path + n.Name
		if err := fn(path, n); err != nil {
			return err
		}
		if len(n.Children) > 0 {
			stack = append(stack, level{path + "/", n.Children})
		}
	}
	return nil
}
