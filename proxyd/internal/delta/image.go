package delta

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// SmallObject is the size below which objects are regrouped into solid frames.
const SmallObject = 128 << 10

// Place is where an object is stored: as object number Object of the pack of
// layer number Layer.
type Place struct{ Layer, Object int }

// Image is all that planning and sending need to know of an image. It is
// immutable, made once and shared by all requests for the image.
type Image struct {
	// Objects is the image's object list, see package wire.
	Objects []toc.Object

	places  []Place
	pieceAt []int // by object: the number of the pieces of those before it
	index   map[toc.Digest]uint32
	diffIDs []toc.Digest            // of the layers
	layers  map[toc.Digest][]uint32 // diff ID → index of each object of the layer
	rest    []uint32                // the objects of the tree, in the order without predictions
	needed  []bool                  // by object: the tree has it
	names   []name                  // by object: of its first file
	dirs    []int32                 // by object: its folder, or -1
	folders []folder                // those with small objects, and all above them, parents first
	small   []uint32                // the small objects in the order of the tree
	bytes   int64                   // of rest
}

// folder is a directory of small objects.
type folder struct {
	parent int32    // or -1
	own    []uint32 // small objects of the directory itself, by name
	// Image.small[first:end] are those of the directory and of all below it, of
	// so many bytes.
	first, end int32
	bytes      int64
}

// NewImage makes the Image of layers, from the lowest to the top, and of the tree
// that they make.
func NewImage(layers []*toc.TOC, tree *toc.Tree) (*Image, error) {
	img := &Image{Objects: toc.ObjectList(layers...)}
	n := len(img.Objects)
	img.index = make(map[toc.Digest]uint32, n)
	for i := range img.Objects {
		img.index[img.Objects[i].Digest] = uint32(i)
	}
	img.places = make([]Place, n)
	img.pieceAt = make([]int, n+1)
	for i := range img.places {
		img.places[i].Layer = -1
		img.pieceAt[i+1] = img.pieceAt[i] + img.Objects[i].NumPieces()
	}
	img.layers = make(map[toc.Digest][]uint32, len(layers))
	for l, t := range layers {
		img.diffIDs = append(img.diffIDs, t.DiffID)
		ids := make([]uint32, len(t.Objects))
		for o := range t.Objects {
			id := img.index[t.Objects[o].Digest]
			if img.Objects[id].Size != t.Objects[o].Size {
				return nil, fmt.Errorf("object %s has two sizes: %w", t.Objects[o].Digest, toc.ErrInvalid)
			}
			ids[o] = id
			if img.places[id].Layer < 0 {
				img.places[id] = Place{l, o}
			}
		}
		img.layers[t.DiffID] = ids
	}
	if err := img.arrange(tree); err != nil {
		return nil, err
	}
	return img, nil
}

// Index returns the index in Objects of the object with the digest.
func (img *Image) Index(d toc.Digest) (uint32, bool) {
	id, ok := img.index[d]
	return id, ok
}

// Place returns where an object is stored. The index must be in Objects.
func (img *Image) Place(object uint32) Place { return img.places[object] }

// Needed tells whether the tree has an object.
func (img *Image) Needed(object uint32) bool { return img.needed[object] }

// arrange derives from the tree which objects are needed, their neighbours, and
// the order for what no prediction names.
func (img *Image) arrange(tree *toc.Tree) error {
	n := len(img.Objects)
	img.needed = make([]bool, n)
	img.dirs = make([]int32, n)
	img.names = make([]name, n)
	late := make([]bool, n)
	folders := map[string]int32{}
	err := tree.Walk(func(file string, node *toc.Node) error {
		if node.Type != toc.TypeReg || node.Object.IsZero() {
			return nil
		}
		id, ok := img.index[node.Object]
		if !ok {
			return fmt.Errorf("%.200q has the object %s, no layer has: %w", file, node.Object, toc.ErrInvalid)
		}
		doc := isDocument(file)
		if img.needed[id] {
			late[id] = late[id] && doc
			return nil
		}
		img.needed[id], late[id] = true, doc
		img.rest = append(img.rest, id)
		img.bytes += img.Objects[id].Size
		img.dirs[id] = -1
		img.names[id] = newName(file)
		if img.Objects[id].Size < SmallObject {
			img.join(folders, path.Dir(file), id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := len(img.folders) - 1; i > 0; i-- {
		if f := &img.folders[i]; f.parent >= 0 {
			up := &img.folders[f.parent]
			up.end, up.bytes = max(up.end, f.end), up.bytes+f.bytes
		}
	}
	// Small objects stay in the order of the tree: files of one directory
	// compress well together. Large ones come after them, the smallest first, so
	// that most files are complete early.
	slices.SortStableFunc(img.rest, func(a, b uint32) int {
		return cmp.Or(
			compareBool(late[a], late[b]),
			cmp.Compare(img.largeSize(a), img.largeSize(b)))
	})
	return nil
}

// join makes a small object a member of a directory. It is called in the order of the
// tree, so that what is below a directory lies together.
func (img *Image) join(folders map[string]int32, dir string, id uint32) {
	at := img.folder(folders, dir)
	img.small = append(img.small, id)
	f := &img.folders[at]
	f.own = append(f.own, id)
	f.end = int32(len(img.small))
	f.bytes += img.Objects[id].Size
	img.dirs[id] = at
}

// folder returns the number of a directory, which it makes if need be, with all above it.
func (img *Image) folder(folders map[string]int32, dir string) int32 {
	var missing []string
	at, ok := folders[dir]
	for ; !ok; at, ok = folders[dir] {
		missing = append(missing, dir)
		if dir == "." {
			at = -1
			break
		}
		dir = path.Dir(dir)
	}
	for _, dir := range slices.Backward(missing) {
		n := int32(len(img.folders))
		img.folders = append(img.folders, folder{parent: at, first: int32(len(img.small))})
		folders[dir] = n
		at = n
	}
	return at
}

// largeSize is the size of a large object, 0 for all small ones.
func (img *Image) largeSize(id uint32) int64 {
	if s := img.Objects[id].Size; s >= SmallObject {
		return s
	}
	return 0
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// documents are directories that hardly any program reads.
var documents = []string{
	"usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/",
	"usr/share/gtk-doc/", "usr/share/help/", "usr/share/lintian/",
	"usr/local/share/doc/", "usr/local/share/man/", "usr/local/man/",
	"var/cache/", "var/lib/dpkg/info/", "var/lib/apt/", "var/log/",
}

func isDocument(p string) bool {
	for _, d := range documents {
		if strings.HasPrefix(p, d) {
			return true
		}
	}
	return false
}
