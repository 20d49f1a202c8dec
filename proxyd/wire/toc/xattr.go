package toc

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

const (
	xattrCapability = "security.capability"
	xattrAccessACL  = "system.posix_acl_access"
	xattrDefaultACL = "system.posix_acl_default"
)

// setXattr sets x as containerd and the kernel do: it leaves out what they
// leave out, with a warning, and fails where they fail.
func (in *Inode) setXattr(x Xattr) error {
	switch {
	case strings.HasPrefix(x.Name, "trusted."):
		return nil // containerd does not let images set them
	case x.Name == "" || len(x.Name) > maxBase || strings.IndexByte(x.Name, 0) >= 0 || len(x.Value) > MaxXattrValue:
		return fmt.Errorf("xattr %.300q of %d bytes: %w", x.Name, len(x.Value), ErrInvalid)
	case strings.HasPrefix(x.Name, "user."):
		if in.Type != TypeReg && in.Type != TypeDir {
			return nil // EPERM, ignored for user.*
		}
	case x.Name == xattrAccessACL || x.Name == xattrDefaultACL:
		return in.setACL(x.Name, x.Value)
	case x.Name == xattrCapability:
		if x.Value != "" && !validCapability(x.Value) {
			return fmt.Errorf("xattr %s is malformed: %w", x.Name, ErrInvalid)
		}
	case !strings.HasPrefix(x.Name, "security."):
		return nil // ENOTSUP, ignored
	}
	if strings.HasSuffix(x.Name, ".") && strings.Count(x.Name, ".") == 1 {
		return fmt.Errorf("xattr %q has no name after its prefix: %w", x.Name, ErrInvalid)
	}
	return in.putXattr(x)
}

func (in *Inode) putXattr(x Xattr) error {
	i, ok := in.findXattr(x.Name)
	switch {
	case ok:
		in.Xattrs[i] = x
	case len(in.Xattrs) >= MaxXattrs:
		return fmt.Errorf("more than %d xattrs: %w", MaxXattrs, ErrInvalid)
	default:
		in.Xattrs = slices.Insert(in.Xattrs, i, x)
	}
	return nil
}

func (in *Inode) removeXattr(name string) {
	if i, ok := in.findXattr(name); ok {
		in.Xattrs = slices.Delete(in.Xattrs, i, i+1)
	}
}

func (in *Inode) xattr(name string) (string, bool) {
	i, ok := in.findXattr(name)
	if !ok {
		return "", false
	}
	return in.Xattrs[i].Value, true
}

func (in *Inode) findXattr(name string) (int, bool) {
	return slices.BinarySearchFunc(in.Xattrs, name, func(x Xattr, name string) int { return strings.Compare(x.Name, name) })
}

// validCapability tells whether the kernel takes v: struct vfs_cap_data of
// revision 2, or of 3 with the user ID of a root.
func validCapability(v string) bool {
	if len(v) < 4 {
		return false
	}
	switch binary.LittleEndian.Uint32([]byte(v[:4])) >> 24 {
	case 2:
		return len(v) == 20
	case 3:
		return len(v) == 24 && v[20:] != "\xff\xff\xff\xff"
	}
	return false
}
