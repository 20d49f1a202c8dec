package toc

import (
	"encoding/binary"
	"fmt"
)

// Tags of POSIX ACL entries, from linux/posix_acl.h.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclNoID = 1<<32 - 1
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

type acl []aclEntry

// parseACL reads the value of an ACL xattr. An empty ACL is nil, as is one of
// another version than 2: that is "not supported" and hence ignored (ok false).
func parseACL(v string) (a acl, ok bool, err error) {
	const header, size = 4, 8
	if v == "" {
		return nil, true, nil
	}
	if len(v) < header {
		return nil, false, fmt.Errorf("POSIX ACL of %d bytes: %w", len(v), ErrInvalid)
	}
	b := []byte(v)
	if binary.LittleEndian.Uint32(b) != 2 {
		return nil, false, nil
	}
	b = b[header:]
	if len(b)%size != 0 {
		return nil, false, fmt.Errorf("POSIX ACL of %d bytes: %w", len(v), ErrInvalid)
	}
	for ; len(b) > 0; b = b[size:] {
		a = append(a, aclEntry{
			tag:  binary.LittleEndian.Uint16(b),
			perm: binary.LittleEndian.Uint16(b[2:]),
			id:   binary.LittleEndian.Uint32(b[4:]),
		})
	}
	if len(a) > 0 && !a.valid() {
		return nil, false, fmt.Errorf("POSIX ACL is malformed: %w", ErrInvalid)
	}
	return a, true, nil
}

// valid is the kernel's posix_acl_valid: user::, user:x, group::, group:x,
// mask, other in this order, and a mask where there is a user:x or group:x.
func (a acl) valid() bool {
	// What may come next, given the last tag.
	next := uint16(aclUserObj)
	needMask := false
	for i, e := range a {
		if e.perm > 7 || e.tag&next == 0 || e.tag&(e.tag-1) != 0 {
			return false
		}
		switch e.tag {
		case aclUserObj, aclUser:
			next = aclUser | aclGroupObj
		case aclGroupObj, aclGroup:
			next = aclGroup | aclMask
			if !needMask && e.tag == aclGroupObj {
				next |= aclOther
			}
		case aclMask:
			next = aclOther
		case aclOther:
			return i == len(a)-1
		}
		if e.tag == aclUser || e.tag == aclGroup {
			if e.id == aclNoID {
				return false
			}
			needMask = true
			next &^= aclOther
		} else {
			a[i].id = aclNoID
		}
	}
	return false
}

// minimal tells whether a says no more than permission bits do.
func (a acl) minimal() bool {
	for _, e := range a {
		if e.tag == aclUser || e.tag == aclGroup || e.tag == aclMask {
			return false
		}
	}
	return true
}

func (a acl) String() string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range a {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

// setACL sets an ACL xattr. The permission bits follow an access ACL.
func (in *Inode) setACL(name, value string) error {
	if in.Type == TypeSymlink {
		return nil // ENOTSUP, ignored
	}
	a, ok, err := parseACL(value)
	if err != nil || !ok {
		return err
	}
	if name == xattrDefaultACL && in.Type != TypeDir {
		if a == nil {
			return nil
		}
		return fmt.Errorf("default ACL of a file: %w", ErrInvalid)
	}
	if name == xattrAccessACL && a != nil {
		in.Mode = in.Mode&^0o777 | a.mode()
		if a.minimal() {
			a = nil
		}
	}
	if a == nil {
		in.removeXattr(name)
		return nil
	}
	return in.putXattr(Xattr{name, a.String()})
}

// mode returns the permission bits that the ACL gives a file.
func (a acl) mode() (mode uint32) {
	for _, e := range a {
		switch e.tag {
		case aclUserObj:
			mode |= uint32(e.perm) << 6
		case aclGroupObj:
			mode = mode&^0o070 | uint32(e.perm)<<3
		case aclMask: // comes after group::
			mode = mode&^0o070 | uint32(e.perm)<<3
		case aclOther:
			mode |= uint32(e.perm)
		}
	}
	return mode
}

// chmodACL makes the access ACL follow the permission bits.
func (in *Inode) chmodACL() {
	v, ok := in.xattr(xattrAccessACL)
	if !ok {
		return
	}
	a, _, err := parseACL(v)
	if err != nil || a == nil {
		return
	}
	group := -1
	for i, e := range a {
		switch e.tag {
		case aclUserObj:
			a[i].perm = uint16(in.Mode >> 6 & 7)
		case aclGroupObj, aclMask: // the mask comes last and takes precedence
			group = i
		case aclOther:
			a[i].perm = uint16(in.Mode & 7)
		}
	}
	if group >= 0 {
		a[group].perm = uint16(in.Mode >> 3 & 7)
	}
	i, _ := in.findXattr(xattrAccessACL)
	in.Xattrs[i].Value = a.String()
}

// inheritACL gives a new file the default ACL of its directory.
func (in *Inode) inheritACL(dir *Inode) {
	v, ok := dir.xattr(xattrDefaultACL)
	if !ok || in.Type == TypeSymlink {
		return
	}
	a, _, err := parseACL(v)
	if err != nil || a == nil {
		return
	}
	if !a.minimal() {
		in.Xattrs = append(in.Xattrs, Xattr{xattrAccessACL, v})
		in.chmodACL()
	}
	if in.Type == TypeDir {
		in.Xattrs = append(in.Xattrs, Xattr{xattrDefaultACL, v})
	}
}
