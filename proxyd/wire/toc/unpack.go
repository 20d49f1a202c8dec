package toc

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// The names that stand for something else than a file.
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
)

// keepOwner is the -1 of chown(2).
const keepOwner = 1<<32 - 1

// maxMtime is the last second of containerd's largest time, time.Unix(0, 1<<63-1).
const (
	maxMtimeSec  = (1<<63 - 1) / 1_000_000_000
	maxMtimeNsec = (1<<63 - 1) % 1_000_000_000
)

// unpacker does with one layer what containerd's pkg/archive does with its tar,
// on a model of the upper directory.
type unpacker struct {
	*budget
	root  *dirent
	below []*dirent // upper directories of the layers below, nearest first

	// The lowest layer is unpacked without an overlay mount, so its whiteouts
	// remove what the layer itself has unpacked. Opaque markers spare the paths
	// that entries named before; unpacked is nil in layers without a marker.
	unpacked map[string]bool
	opaque   map[string]bool // directories whose marker was seen
}

// unpack returns the upper directory of the layer.
func unpack(t *TOC, below []*dirent, b *budget) (*dirent, error) {
	u := &unpacker{
		budget: b,
		root:   &dirent{Inode: &Inode{Type: TypeDir, Mode: 0o755}},
		below:  below,
	}
	if len(below) == 0 && slices.ContainsFunc(t.Entries, func(e Entry) bool { return path.Base(e.Name) == opaqueMarker }) {
		u.unpacked, u.opaque = map[string]bool{}, map[string]bool{}
	}
	var dirs []*Entry
	for i := range t.Entries {
		e := &t.Entries[i]
		written, err := u.entry(e)
		if err != nil {
			return nil, fmt.Errorf("entry %.300q: %w", e.Name, err)
		}
		if written && e.Type == TypeDir {
			dirs = append(dirs, e)
		}
	}
	// Unpacking into directories changed their times. The names are resolved
	// anew: what was a directory may be something else by now.
	for _, e := range dirs {
		_, d, err := u.resolve(u.root, e.Name)
		if err == nil && d == nil {
			err = fmt.Errorf("directory was removed later in the layer: %w", ErrInvalid)
		}
		if err != nil {
			return nil, fmt.Errorf("entry %.300q: %w", e.Name, err)
		}
		d.chtimes(e)
	}
	return u.root, nil
}

// entry unpacks one entry. It tells whether it is a file, not a whiteout.
func (u *unpacker) entry(e *Entry) (written bool, err error) {
	if err := check(e); err != nil || e.Name == "" {
		return false, err
	}
	dir, base := path.Split(e.Name)
	parentPath, parent, err := u.resolve(u.root, strings.TrimSuffix(dir, "/"))
	if err != nil {
		return false, err
	}
	if parent == nil || parent.Type != TypeDir {
		if parent, err = u.mkparent(parentPath); err != nil {
			return false, err
		}
	}
	full := path.Join(parentPath, base)
	if len(full) > maxPath {
		return false, fmt.Errorf("path is longer than %d: %w", maxPath, ErrInvalid)
	}
	if base == opaqueMarker {
		return false, u.markOpaque(parentPath, parent)
	}
	if name, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return false, u.whiteout(parent, name, e)
	}
	if len(base) > maxBase {
		return false, fmt.Errorf("name is longer than %d: %w", maxBase, ErrInvalid)
	}
	old := parent.children[base]
	if old != nil && (old.Type != TypeDir || e.Type != TypeDir) {
		parent.remove(base)
		old = nil
	}
	d, err := u.create(parent, old, base, e)
	if err != nil {
		return false, err
	}
	if u.unpacked != nil {
		u.unpacked[full] = true
	}
	return true, d.setattr(e)
}

// check refuses entries that could not come from a tar, or which no kernel takes.
func check(e *Entry) error {
	switch {
	case path.Clean("/"+e.Name) != "/"+e.Name:
		return fmt.Errorf("name is not clean: %w", ErrInvalid)
	case strings.IndexByte(e.Name, 0) >= 0 || strings.IndexByte(e.Link, 0) >= 0:
		return fmt.Errorf("name or link with a NUL: %w", ErrInvalid)
	case e.Type > TypeFifo:
		return fmt.Errorf("type %d: %w", e.Type, ErrInvalid)
	case e.Type == TypeLink && path.Clean("/"+e.Link) != "/"+e.Link:
		return fmt.Errorf("link target %.300q is not clean: %w", e.Link, ErrInvalid)
	case e.Type == TypeReg && (e.Size < 0 || e.Size > MaxObjectSize || e.Size > 0 == e.Object.IsZero()):
		return fmt.Errorf("size %d with object %v: %w", e.Size, e.Object, ErrInvalid)
	}
	return nil
}

// create makes the file of an entry, without its attributes. A directory that
// exists (old) is kept.
func (u *unpacker) create(parent, old *dirent, base string, e *Entry) (*dirent, error) {
	if old != nil {
		return old, nil
	}
	if e.Type == TypeLink {
		return u.link(parent, base, e.Link)
	}
	d, err := u.add(parent, base, e.Type, e.Mode)
	if err != nil {
		return nil, err
	}
	switch e.Type {
	case TypeReg:
		d.Size, d.Object = e.Size, e.Object
	case TypeSymlink:
		if e.Link == "" || len(e.Link) > maxPath {
			return nil, fmt.Errorf("symlink target of %d bytes: %w", len(e.Link), ErrInvalid)
		}
		d.Link, d.Mode = e.Link, 0o777
	case TypeChar, TypeBlock:
		// mknod(2) has 12 bits for the major and 20 for the minor number.
		d.DevMajor, d.DevMinor = e.DevMajor&0xfff, e.DevMinor&0xfffff
	}
	return d, nil
}

// add creates a name with a new inode, as the kernel initialises it for root.
func (u *unpacker) add(parent *dirent, base string, typ Type, mode uint32) (*dirent, error) {
	if err := u.node(); err != nil {
		return nil, err
	}
	d := &dirent{Inode: &Inode{Type: typ, Mode: mode & 0o7777, Nlink: 1}}
	if parent.Mode&0o2000 != 0 {
		d.GID = parent.GID
	}
	d.inheritACL(parent.Inode)
	parent.insert(base, d)
	return d, nil
}

// link makes a hard link. Its target has to be in the same layer: containerd
// looks for it in the upper directory only.
func (u *unpacker) link(parent *dirent, base, target string) (*dirent, error) {
	dir, name := path.Split(target)
	_, at, err := u.resolve(u.root, strings.TrimSuffix(dir, "/"))
	if err != nil {
		return nil, err
	}
	var to *dirent
	if at != nil {
		to = at.children[name]
	}
	if to == nil {
		return nil, fmt.Errorf("target %.300q of hard link is not in the layer: %w", target, ErrInvalid)
	}
	if to.Type == TypeDir {
		return nil, fmt.Errorf("target %.300q of hard link is a directory: %w", target, ErrInvalid)
	}
	if err := u.node(); err != nil {
		return nil, err
	}
	d := &dirent{Inode: to.Inode}
	d.Nlink++
	parent.insert(base, d)
	return d, nil
}

// mkparent creates the directories that are missing on p, which is resolved.
// They take their attributes from the nearest layer below that has them.
func (u *unpacker) mkparent(p string) (*dirent, error) {
	at := u.root
	for end := 0; end < len(p); {
		start := end + 1
		if i := strings.IndexByte(p[start:], '/'); i >= 0 {
			end = start + i
		} else {
			end = len(p)
		}
		if err := u.step(); err != nil {
			return nil, err
		}
		name := p[start:end]
		d := at.children[name]
		if d == nil {
			var err error
			if d, err = u.add(at, name, TypeDir, 0o755); err != nil {
				return nil, err
			}
			d.chmod(0o755)
			if err := u.copyDirInfo(d, p[1:end]); err != nil {
				return nil, err
			}
		}
		if d.Type != TypeDir {
			return nil, fmt.Errorf("%.300q is not a directory: %w", p[:end], ErrInvalid)
		}
		at = d
	}
	return at, nil
}

// copyDirInfo gives d the attributes of the directory p of the layers below.
// Their upper directories are asked, not what they show together: a file or
// whiteout ends the search, an opaque directory does not.
func (u *unpacker) copyDirInfo(d *dirent, p string) error {
	for _, root := range u.below {
		_, from, err := u.resolve(root, p)
		if err != nil {
			return err
		}
		if from == nil {
			continue
		}
		if from.Type != TypeDir {
			return nil
		}
		d.UID, d.GID = from.UID, from.GID
		d.chmod(from.Mode)
		d.MtimeSec, d.MtimeNsec = from.MtimeSec, from.MtimeNsec
		for _, x := range from.Xattrs {
			if err := d.setXattr(x); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// markOpaque does what an opaque marker in dir asks for.
func (u *unpacker) markOpaque(p string, dir *dirent) error {
	if len(u.below) > 0 {
		dir.opaque = true
		return nil
	}
	if u.opaque[p] {
		return nil
	}
	u.opaque[p] = true
	type level struct {
		path string
		dir  *dirent
	}
	for todo := []level{{p, dir}}; len(todo) > 0; {
		l := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for name, c := range l.dir.children {
			if err := u.step(); err != nil {
				return err
			}
			p := path.Join(l.path, name)
			switch {
			case !u.unpacked[p]: // also implicit directories, with all they hold
				l.dir.remove(name)
			case c.Type == TypeDir:
				todo = append(todo, level{p, c})
			}
		}
	}
	return nil
}

// whiteout hides name of the layers below. What kind of entry asks for it does
// not matter.
func (u *unpacker) whiteout(parent *dirent, name string, e *Entry) error {
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("bad whiteout name: %w", ErrInvalid)
	}
	if len(u.below) == 0 {
		parent.remove(name)
		return nil
	}
	if len(name) > maxBase {
		return fmt.Errorf("name is longer than %d: %w", maxBase, ErrInvalid)
	}
	if parent.children[name] != nil {
		return fmt.Errorf("whiteout of a name in the same layer: %w", ErrInvalid)
	}
	d, err := u.add(parent, name, TypeChar, 0)
	if err != nil {
		return err
	}
	d.chown(e.UID, e.GID)
	return nil
}

func (d *dirent) insert(name string, c *dirent) {
	if d.children == nil {
		d.children = map[string]*dirent{}
	}
	d.children[name] = c
}

// remove removes name, if there, and all below it.
func (d *dirent) remove(name string) {
	c := d.children[name]
	if c == nil {
		return
	}
	delete(d.children, name)
	for todo := []*dirent{c}; len(todo) > 0; {
		c := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		c.Nlink--
		for _, cc := range c.children {
			todo = append(todo, cc)
		}
	}
}

// setattr gives a new file, or a directory that was there before, or the inode
// shared with the target of a hard link, the attributes of e.
func (d *dirent) setattr(e *Entry) error {
	d.chown(e.UID, e.GID)
	for _, x := range e.Xattrs {
		if err := d.setXattr(x); err != nil {
			return err
		}
	}
	d.chmod(e.Mode)
	d.chtimes(e)
	return nil
}

func (in *Inode) chown(uid, gid uint32) {
	if uid != keepOwner {
		in.UID = uid
	}
	if gid != keepOwner {
		in.GID = gid
	}
	if in.Type != TypeDir {
		in.removeXattr(xattrCapability) // as the kernel does
	}
}

func (in *Inode) chmod(mode uint32) {
	if in.Type == TypeSymlink {
		return
	}
	in.Mode = mode & 0o7777
	in.chmodACL()
}

// chtimes sets the time of e. Those containerd does not take become the epoch.
func (in *Inode) chtimes(e *Entry) {
	in.MtimeSec, in.MtimeNsec = e.MtimeSec, e.MtimeNsec
	if e.MtimeSec < 0 || e.MtimeSec > maxMtimeSec || e.MtimeSec == maxMtimeSec && e.MtimeNsec > maxMtimeNsec {
		in.MtimeSec, in.MtimeNsec = 0, 0
	}
}
