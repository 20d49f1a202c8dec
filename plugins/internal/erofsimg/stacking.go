package erofsimg

import (
	"fmt"
	"slices"
	"strings"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Stacking is how overlayfs gets at the objects below an image.
type Stacking int

const (
	// DataOnly means that the objects are in data-only layers, of which overlayfs shows no
	// names. Linux 6.5 and later.
	DataOnly Stacking = iota
	// Ordinary means that the objects are in ordinary lower layers. The names in their root
	// are two hex digits; the image hides them with whiteouts. overlayfs follows an
	// absolute redirect layer by layer, each from its own root, so that whiteouts of
	// the layer above are not in the way (fs/overlayfs/namei.c, ovl_lookup_layer;
	// Linux 4.19 and later).
	Ordinary
)

// Lowerdir joins layers to the value of overlayfs' option lowerdir.
func (s Stacking) Lowerdir(layers, data []string) string {
	separator := "::"
	if s == Ordinary {
		separator = ":"
	}
	return strings.Join(append([]string{strings.Join(layers, ":")}, data...), separator)
}

// hideObjects returns t with whiteouts for the directories of objects. Where t
// has such a name the name hides them, if it is of a directory by being opaque.
func hideObjects(t *toc.Tree) (hiding *toc.Tree, opaque map[*toc.Inode]bool) {
	root := *t.Root
	root.Children = slices.Clone(root.Children)
	opaque = map[*toc.Inode]bool{}
	for i := range 256 {
		name := fmt.Sprintf("%02x", i)
		if n := t.Root.Child(name); n == nil {
			// A whiteout is a character device 0:0.
			root.Children = append(root.Children, &toc.Node{Name: name, Inode: &toc.Inode{Type: toc.TypeChar, Nlink: 1}})
		} else if n.Type == toc.TypeDir {
			opaque[n.Inode] = true
		}
	}
	slices.SortFunc(root.Children, func(a, b *toc.Node) int { return strings.Compare(a.Name, b.Name) })
	return &toc.Tree{Root: &root}, opaque
}
