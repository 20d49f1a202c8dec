package toc

import (
	"fmt"
	"strings"
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("toc: "+format+": %w", append(args, ErrInvalid)...)
}

// ValidName tells whether s can be the name of an entry: clean, without leading
// slash, within the limits. "" is valid; it is the root.
func ValidName(s string) bool {
	if s == "" {
		return true
	}
	if len(s) > MaxName || strings.IndexByte(s, 0) >= 0 {
		return false
	}
	for {
		c, rest, more := strings.Cut(s, "/")
		if c == "" || c == "." || c == ".." || len(c) > MaxComponent {
			return false
		}
		if !more {
			return true
		}
		s = rest
	}
}

// validate checks everything in e that does not depend on objects and xattrs.
func (e *Entry) validate() error {
	const (
		maxMode = 0o7777
		second  = 1_000_000_000
	)
	switch {
	case !ValidName(e.Name):
		return invalid("name %.200q is not clean", e.Name)
	case e.Type > TypeFifo:
		return invalid("%.200q: type %d", e.Name, e.Type)
	case e.Name == "" && e.Type != TypeDir:
		return invalid("the root is no directory")
	case e.Mode > maxMode:
		return invalid("%.200q: mode %#o", e.Name, e.Mode)
	case e.MtimeNsec >= second:
		return invalid("%.200q: %d nanoseconds", e.Name, e.MtimeNsec)
	case e.Type != TypeReg && (e.Size != 0 || !e.Object.IsZero()):
		return invalid("%.200q has contents and is no regular file", e.Name)
	case e.Type != TypeChar && e.Type != TypeBlock && (e.DevMajor != 0 || e.DevMinor != 0):
		return invalid("%.200q has a device number and is no device", e.Name)
	}
	switch e.Type {
	case TypeSymlink:
		if e.Link == "" || len(e.Link) > MaxName || strings.IndexByte(e.Link, 0) >= 0 {
			return invalid("%.200q: symlink target %.200q", e.Name, e.Link)
		}
	case TypeLink:
		if e.Link == "" || !ValidName(e.Link) {
			return invalid("%.200q: link target %.200q is not clean", e.Name, e.Link)
		}
	default:
		if e.Link != "" {
			return invalid("%.200q has a target and is no link", e.Name)
		}
	}
	return nil
}

func validateXattrs(set []Xattr) error {
	if len(set) > MaxXattrs {
		return invalid("%d xattrs", len(set))
	}
	for i, x := range set {
		switch {
		case x.Name == "" || len(x.Name) > MaxXattrName || strings.IndexByte(x.Name, 0) >= 0:
			return invalid("xattr name %.300q", x.Name)
		case len(x.Value) > MaxXattrValue:
			return invalid("xattr %q of %d bytes", x.Name, len(x.Value))
		case i > 0 && set[i-1].Name >= x.Name:
			return invalid("xattrs are not sorted")
		}
	}
	return nil
}

// validate checks that o is consistent in itself.
func (o *Object) validate() error {
	switch {
	case o.Digest.IsZero():
		return invalid("object without digest")
	case o.Size < 1 || o.Size > MaxObjectSize:
		return invalid("object of %d bytes", o.Size)
	case len(o.Pieces) != pieceDigests(o.Size):
		return invalid("object of %d bytes has %d pieces", o.Size, len(o.Pieces))
	}
	return nil
}

// pieceDigests is the number of digests in Object.Pieces for an object of the
// given size.
func pieceDigests(size int64) int {
	if size <= PieceSize {
		return 0
	}
	return int((size + PieceSize - 1) / PieceSize)
}
