package erofsimg

import (
	"io/fs"
	"strings"
	"time"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// treeFS shows a tree to go-erofs, which takes metadata from an [fs.FS]. Files
// cannot be opened.
type treeFS struct {
	tree   *toc.Tree
	links  map[*toc.Inode]*toc.Node // see check
	opaque map[*toc.Inode]bool      // see hideObjects
}

var (
	_ fs.ReadDirFS  = treeFS{}
	_ fs.StatFS     = treeFS{}
	_ fs.ReadLinkFS = treeFS{}
)

func (t treeFS) lookup(op, name string) (*toc.Node, error) {
	p := name
	if p == "." {
		p = ""
	}
	if n := t.tree.Lookup(p); n != nil {
		return n, nil
	}
	return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

// Open implements fs.FS. go-erofs does not call it for metadata.
func (t treeFS) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
}

// Stat implements fs.StatFS.
func (t treeFS) Stat(name string) (fs.FileInfo, error) {
	n, err := t.lookup("stat", name)
	if err != nil {
		return nil, err
	}
	return t.info(n), nil
}

// Lstat implements fs.ReadLinkFS.
func (t treeFS) Lstat(name string) (fs.FileInfo, error) { return t.Stat(name) }

// ReadLink implements fs.ReadLinkFS.
func (t treeFS) ReadLink(name string) (string, error) {
	n, err := t.lookup("readlink", name)
	if err != nil {
		return "", err
	}
	return n.Link, nil
}

// ReadDir implements fs.ReadDirFS.
func (t treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.lookup("readdir", name)
	if err != nil {
		return nil, err
	}
	entries := make([]fs.DirEntry, len(n.Children))
	for i, c := range n.Children {
		entries[i] = fs.FileInfoToDirEntry(t.info(c))
	}
	return entries, nil
}

// info returns the fs.FileInfo from which go-erofs makes an inode. It makes one
// for each name; those of the second and further names of a hard link are left
// unused when patchLinks is done, so they get nothing but their type.
func (t treeFS) info(n *toc.Node) fs.FileInfo {
	if first := t.links[n.Inode]; first != nil && first != n {
		return info{node: n}
	}
	i := info{node: n, stat: erofs.Stat{
		UID:     n.UID,
		GID:     n.GID,
		Mtime:   uint64(n.MtimeSec),
		MtimeNs: n.MtimeNsec,
		Nlink:   int(n.Nlink),
		Rdev:    uint32(unix.Mkdev(n.DevMajor, n.DevMinor)), // new_encode_dev
	}}
	for name, value := range xattrs(n.Inode) {
		if i.stat.Xattrs == nil {
			i.stat.Xattrs = map[string]string{}
		}
		i.stat.Xattrs[erofsName(name)] = value
	}
	if t.opaque[n.Inode] {
		if i.stat.Xattrs == nil {
			i.stat.Xattrs = map[string]string{}
		}
		i.stat.Xattrs[xattrOpaque] = "y"
	}
	if n.Type == toc.TypeReg && n.Size > 0 {
		i.size = n.Size
		return dataInfo{i}
	}
	return i
}

// info implements fs.FileInfo, with the rest in Sys.
type info struct {
	node *toc.Node
	size int64
	stat erofs.Stat
}

func (i info) Name() string       { return i.node.Name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return time.Unix(int64(i.stat.Mtime), int64(i.stat.MtimeNs)) }
func (i info) IsDir() bool        { return i.node.Type == toc.TypeDir }
func (i info) Sys() any           { return &i.stat }

func (i info) Mode() fs.FileMode {
	mode := fs.FileMode(i.node.Mode & 0o777)
	for bit, m := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if i.node.Mode&bit != 0 {
			mode |= m
		}
	}
	switch i.node.Type {
	case toc.TypeDir:
		mode |= fs.ModeDir
	case toc.TypeSymlink:
		mode |= fs.ModeSymlink
	case toc.TypeChar:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case toc.TypeBlock:
		mode |= fs.ModeDevice
	case toc.TypeFifo:
		mode |= fs.ModeNamedPipe
	}
	return mode
}

// dataInfo is info of a file with data elsewhere.
type dataInfo struct{ info }

// DataRange says that the data is contiguous. go-erofs then writes one chunk
// index; without a range it writes one per 4 KiB of the file, which for large
// files is most of the image. Where the range is does not matter, since
// overlayfs never reads it.
func (d dataInfo) DataRange() []erofs.DataRange {
	return []erofs.DataRange{{Size: d.size}}
}

// Names that overlayfs gives a meaning to.
const (
	overlayPrefix = "trusted.overlay."
	xattrMetacopy = overlayPrefix + "metacopy"
	xattrRedirect = overlayPrefix + "redirect"
	xattrOpaque   = overlayPrefix + "opaque"
)

// xattrs yields the xattrs of the inode as they have to be in a lower directory
// of overlayfs.
func xattrs(n *toc.Inode) func(yield func(name, value string) bool) {
	return func(yield func(name, value string) bool) {
		if n.Type == toc.TypeReg && n.Size > 0 {
			if !yield(xattrMetacopy, "") || !yield(xattrRedirect, "/"+n.Object.Path()) {
				return
			}
		}
		for _, x := range n.Xattrs {
			name := x.Name
			if rest, ok := strings.CutPrefix(name, overlayPrefix); ok {
				// Escaped as a nested overlayfs does it (kernel 6.7): the
				// image's own must not redirect to other objects.
				name = overlayPrefix + "overlay." + rest
			}
			if !yield(name, x.Value) {
				return
			}
		}
	}
}

// erofsName returns the name under which go-erofs stores an xattr. Its table of
// prefixes has those of ACLs with a dot at the end; without it they would be
// stored as unprefixed names, which the kernel does not list.
func erofsName(name string) string {
	if name == "system.posix_acl_access" || name == "system.posix_acl_default" {
		return name + "."
	}
	return name
}
