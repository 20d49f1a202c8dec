// Package fscmp compares two directory trees by all that a program can see of
// them. Tests use it to hold what Starlight mounts against what containerd
// unpacks.
package fscmp

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what to compare. The zero value compares everything.
type Options struct {
	// DirTimesBefore, if set, leaves out the time of directories that in a are
	// not older. An unpacker leaves the current time on directories which the
	// image does not list.
	DirTimesBefore time.Time
	// Skip leaves out a path, and what is below it. Paths have no leading
	// slash; the root is "".
	Skip func(path string) bool
	// Content tells whether to read files. Nil reads all.
	Content func(path string, size int64) bool
	// IgnoreXattr leaves out xattrs by name.
	IgnoreXattr func(name string) bool
	// IgnoreLinks leaves out link counts, and which names are the same file.
	IgnoreLinks bool
	// Max is the number of differences after which to stop. The default is 100.
	Max int
}

// Difference is one thing that is not the same in a and b.
type Difference struct {
	Path string
	What string // "mode", "xattr user.x", "content", ...
	A, B string
}

func (d Difference) String() string {
	return fmt.Sprintf("%q: %s: %s != %s", d.Path, d.What, d.A, d.B)
}

// Compare compares the trees below the directories a and b, which it does not
// leave through symlinks: names, types, modes, owners, times of modification,
// sizes, contents, targets, device numbers, xattrs, link counts of files and
// which names are the same file. It returns no error for differences.
//
// A name that a directory lists but which does not exist counts as absent:
// overlayfs lists whiteouts in directories with nothing to hide.
func Compare(a, b string, opts Options) ([]Difference, error) {
	if opts.Max == 0 {
		opts.Max = 100
	}
	c := &comparer{opts: opts, ab: map[inode]inode{}, ba: map[inode]inode{}}
	da, err := openDir(unix.AT_FDCWD, a)
	if err != nil {
		return nil, err
	}
	defer da.Close()
	db, err := openDir(unix.AT_FDCWD, b)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	err = c.file("", da, ".", db, ".")
	if errors.Is(err, errEnough) {
		err = nil
	}
	return c.diffs, err
}

var errEnough = errors.New("enough differences")

type inode struct{ dev, ino uint64 }

type comparer struct {
	opts   Options
	diffs  []Difference
	ab, ba map[inode]inode // which inode is which on the other side
}

func (c *comparer) differ(p, what string, a, b any) error {
	c.diffs = append(c.diffs, Difference{p, what, fmt.Sprint(a), fmt.Sprint(b)})
	if len(c.diffs) >= c.opts.Max {
		return errEnough
	}
	return nil
}

// file compares a name in the directory da with one in db.
func (c *comparer) file(p string, da *os.File, na string, db *os.File, nb string) error {
	if c.opts.Skip != nil && c.opts.Skip(p) {
		return nil
	}
	var sa, sb unix.Stat_t
	errA := unix.Fstatat(int(da.Fd()), na, &sa, unix.AT_SYMLINK_NOFOLLOW)
	errB := unix.Fstatat(int(db.Fd()), nb, &sb, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(errA, unix.ENOENT) && errors.Is(errB, unix.ENOENT):
		return nil
	case errors.Is(errA, unix.ENOENT) && errB == nil:
		return c.differ(p, "presence", "absent", "present")
	case errors.Is(errB, unix.ENOENT) && errA == nil:
		return c.differ(p, "presence", "present", "absent")
	case errA != nil || errB != nil:
		return fmt.Errorf("%q: %w", p, errors.Join(errA, errB))
	}
	if sa.Mode&unix.S_IFMT != sb.Mode&unix.S_IFMT {
		return c.differ(p, "type", typeName(sa.Mode), typeName(sb.Mode))
	}
	if err := c.stat(p, &sa, &sb); err != nil {
		return err
	}
	if err := c.xattrs(p, procPath(da, na), procPath(db, nb)); err != nil {
		return err
	}
	switch sa.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return c.dir(p, da, na, db, nb)
	case unix.S_IFLNK:
		return c.symlink(p, procPath(da, na), procPath(db, nb))
	case unix.S_IFREG:
		if sa.Size != sb.Size || c.opts.Content != nil && !c.opts.Content(p, sa.Size) {
			return nil
		}
		return c.content(p, procPath(da, na), procPath(db, nb), sa.Size)
	}
	return nil
}

func (c *comparer) stat(p string, a, b *unix.Stat_t) error {
	type field struct {
		what string
		a, b any
	}
	fields := []field{
		{"mode", fmt.Sprintf("%#o", a.Mode&0o7777), fmt.Sprintf("%#o", b.Mode&0o7777)},
		{"uid", a.Uid, b.Uid},
		{"gid", a.Gid, b.Gid},
	}
	dir := a.Mode&unix.S_IFMT == unix.S_IFDIR
	mtime := time.Unix(a.Mtim.Unix())
	if !dir || c.opts.DirTimesBefore.IsZero() || mtime.Before(c.opts.DirTimesBefore) {
		fields = append(fields, field{"mtime", mtime.UTC(), time.Unix(b.Mtim.Unix()).UTC()})
	}
	if !dir {
		// The size of a directory is its file system's own affair, and so is
		// its link count: overlayfs says 1 if it is merged.
		fields = append(fields, field{"size", a.Size, b.Size})
		if !c.opts.IgnoreLinks {
			fields = append(fields, field{"nlink", a.Nlink, b.Nlink})
		}
	}
	if t := a.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		fields = append(fields, field{"rdev", devName(a.Rdev), devName(b.Rdev)})
	}
	for _, f := range fields {
		if f.a != f.b {
			if err := c.differ(p, f.what, f.a, f.b); err != nil {
				return err
			}
		}
	}
	if dir || c.opts.IgnoreLinks {
		return nil
	}
	ia, ib := inode{a.Dev, a.Ino}, inode{b.Dev, b.Ino}
	wantB, okA := c.ab[ia]
	wantA, okB := c.ba[ib]
	c.ab[ia], c.ba[ib] = ib, ia
	if okA && wantB != ib || okB && wantA != ia {
		return c.differ(p, "hard link", linked(okA), linked(okB))
	}
	return nil
}

func linked(ok bool) string {
	if ok {
		return "to a name before"
	}
	return "not to a name before"
}

func (c *comparer) dir(p string, da *os.File, na string, db *os.File, nb string) error {
	a, err := openDir(int(da.Fd()), na)
	if err != nil {
		return fmt.Errorf("%q: %w", p, err)
	}
	defer a.Close()
	b, err := openDir(int(db.Fd()), nb)
	if err != nil {
		return fmt.Errorf("%q: %w", p, err)
	}
	defer b.Close()
	names, err := a.Readdirnames(-1)
	if err != nil {
		return err
	}
	more, err := b.Readdirnames(-1)
	if err != nil {
		return err
	}
	names = append(names, more...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if err := c.file(path.Join(p, name), a, name, b, name); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparer) symlink(p, a, b string) error {
	ta, err := os.Readlink(a)
	if err != nil {
		return err
	}
	tb, err := os.Readlink(b)
	if err != nil {
		return err
	}
	if ta != tb {
		return c.differ(p, "target", fmt.Sprintf("%q", ta), fmt.Sprintf("%q", tb))
	}
	return nil
}

func (c *comparer) xattrs(p, a, b string) error {
	xa, err := c.readXattrs(a)
	if err != nil {
		return fmt.Errorf("%q: %w", p, err)
	}
	xb, err := c.readXattrs(b)
	if err != nil {
		return fmt.Errorf("%q: %w", p, err)
	}
	for name, va := range xa {
		vb, ok := xb[name]
		switch {
		case !ok:
			err = c.differ(p, "xattr "+name, fmt.Sprintf("%q", va), "absent")
		case va != vb:
			err = c.differ(p, "xattr "+name, fmt.Sprintf("%q", va), fmt.Sprintf("%q", vb))
		}
		if err != nil {
			return err
		}
	}
	for name, vb := range xb {
		if _, ok := xa[name]; !ok {
			if err := c.differ(p, "xattr "+name, "absent", fmt.Sprintf("%q", vb)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *comparer) readXattrs(p string) (map[string]string, error) {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX and XATTR_SIZE_MAX
	n, err := unix.Llistxattr(p, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	xattrs := map[string]string{}
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" || c.opts.IgnoreXattr != nil && c.opts.IgnoreXattr(name) {
			continue
		}
		n, err := unix.Lgetxattr(p, name, buf)
		if err != nil {
			// An empty security.capability can be listed but not read.
			xattrs[name] = "unreadable: " + err.Error()
			continue
		}
		xattrs[name] = string(buf[:n])
	}
	return xattrs, nil
}

// content compares files of one size. It passes over what is a hole in both.
func (c *comparer) content(p, a, b string, size int64) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	bufA, bufB := make([]byte, 128<<10), make([]byte, 128<<10)
	for off := int64(0); off < size; {
		if off = min(nextData(fa, off, size), nextData(fb, off, size)); off >= size {
			break
		}
		n := min(int64(len(bufA)), size-off)
		if _, err := fa.ReadAt(bufA[:n], off); err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
		if _, err := fb.ReadAt(bufB[:n], off); err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
		if !bytes.Equal(bufA[:n], bufB[:n]) {
			i := 0
			for bufA[i] == bufB[i] {
				i++
			}
			return c.differ(p, fmt.Sprintf("content at %d", off+int64(i)), bufA[i], bufB[i])
		}
		off += n
	}
	return nil
}

func nextData(f *os.File, off, size int64) int64 {
	next, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size
	case err != nil:
		return off // not known
	}
	return next
}

func openDir(at int, name string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// procPath names a file in an open directory, however deep that is.
func procPath(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

func devName(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return fmt.Sprintf("%#o", mode&unix.S_IFMT)
}
