package predict

import (
	"path"
	"sort"
	"strings"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// node is a name in the view.
type node struct {
	path     string
	typ      toc.Type
	mode     uint32
	link     string
	object   int
	size     int64
	mtime    int64
	children []string // base names, sorted
}

// view answers look-ups in the merged tree as a process in the container would
// get them.
type view struct {
	nodes map[string]*node // by path without leading slash
	files []*node          // with an object
}

func newView(entries []Entry) *view {
	v := &view{nodes: make(map[string]*node, len(entries)+1)}
	all := make([]node, len(entries))
	for i, e := range entries {
		n := &all[i]
		*n = node{path: e.Path, typ: e.Type, mode: e.Mode, link: e.Link, object: e.Object, size: e.Size, mtime: e.Mtime}
		if e.Type != toc.TypeReg {
			n.object = NoObject
		}
		v.nodes[e.Path] = n
		if n.object >= 0 {
			v.files = append(v.files, n)
		}
	}
	if v.nodes[""] == nil {
		v.nodes[""] = &node{typ: toc.TypeDir, object: NoObject}
	}
	for name := range v.nodes {
		if name == "" {
			continue
		}
		dir, base := path.Split(name)
		if parent := v.nodes[strings.TrimSuffix(dir, "/")]; parent != nil {
			parent.children = append(parent.children, base)
		}
	}
	for _, n := range v.nodes {
		sort.Strings(n.children)
	}
	sort.Slice(v.files, func(i, j int) bool { return v.files[i].path < v.files[j].path })
	return v
}

// maxSymlinks is the kernel's limit for one path walk.
const maxSymlinks = 40

// lookup resolves a path, following every symlink; nil if there is nothing. A
// path that does not start with a slash is taken from the root.
func (v *view) lookup(name string) *node {
	if len(name) > 2*toc.MaxName {
		return nil
	}
	rest := strings.Split(name, "/")
	cur := ""
	for hops := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			cur = parentOf(cur)
			continue
		}
		next := part
		if cur != "" {
			next = cur + "/" + part
		}
		n := v.nodes[next]
		if n == nil {
			return nil
		}
		if n.typ != toc.TypeSymlink {
			cur = next
			continue
		}
		if hops++; hops > maxSymlinks || len(rest) > 4096 {
			return nil
		}
		if strings.HasPrefix(n.link, "/") {
			cur = ""
		}
		rest = append(strings.Split(n.link, "/"), rest...)
	}
	return v.nodes[cur]
}

// file is lookup for regular files with content.
func (v *view) file(name string) *node {
	if n := v.lookup(name); n != nil && n.object >= 0 {
		return n
	}
	return nil
}

// dir is lookup for directories.
func (v *view) dir(name string) *node {
	if n := v.lookup(name); n != nil && n.typ == toc.TypeDir {
		return n
	}
	return nil
}

// has tells whether a directory node has a child of this name.
func (n *node) has(name string) bool {
	i := sort.SearchStrings(n.children, name)
	return i < len(n.children) && n.children[i] == name
}

func parentOf(name string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i]
	}
	return ""
}

// abs joins name to dir unless it is absolute.
func abs(dir, name string) string {
	if strings.HasPrefix(name, "/") {
		return path.Clean(name)
	}
	return path.Join("/", dir, name)
}
