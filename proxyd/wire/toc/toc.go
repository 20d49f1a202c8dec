// Package toc is the table of contents of one image layer, and the tree that a
// chain of layers makes.
//
// A [TOC] holds the entries of a layer's tar in the order of the tar, with the
// content of each non-empty regular file named by its sha256 (an object). It is
// what proxyd learns when it ingests a layer and what a worker needs to build
// a root file system without the layer. [Merge] applies a chain of TOCs with the
// rules by which containerd unpacks layers with overlayfs.
package toc

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// PieceSize is the size in bytes of the pieces in which objects larger than it
// are sent and checked. The last piece of an object may be shorter.
//
// It is part of the format: piece digests in stored TOCs depend on it.
const PieceSize = 256 << 10

// Digest is a sha256 in binary. The zero Digest means "none".
type Digest [32]byte

// ParseDigest reads "sha256:<64 lower case hex digits>".
func ParseDigest(s string) (Digest, error) {
	var d Digest
	enc, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(enc) != 2*len(d) || strings.ToLower(enc) != enc {
		return Digest{}, fmt.Errorf("digest %q is not a sha256: %w", s, ErrInvalid)
	}
	if _, err := hex.Decode(d[:], []byte(enc)); err != nil {
		return Digest{}, fmt.Errorf("digest %q: %w", s, ErrInvalid)
	}
	return d, nil
}

// String returns the digest as "sha256:<hex>".
func (d Digest) String() string { return "sha256:" + d.Hex() }

// Hex returns the 64 hex digits.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// Path returns "aa/rest", the name of the object below an object directory.
func (d Digest) Path() string { h := d.Hex(); return h[:2] + "/" + h[2:] }

// IsZero tells whether d is the zero Digest.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText makes digests readable in JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *Digest) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDigest(string(b))
	return err
}

// Type is the type of an entry.
type Type uint8

// The types of entries. Whiteouts are ordinary TypeReg entries with their
// ".wh." names: Merge interprets them.
const (
	TypeReg Type = iota
	TypeDir
	TypeSymlink
	TypeLink // hard link to Entry.Link, a name in the image
	TypeChar
	TypeBlock
	TypeFifo
)

// Xattr is one extended attribute: the full name ("security.capability") and
// the raw value.
type Xattr struct{ Name, Value string }

// Entry is one member of a layer's tar.
type Entry struct {
	// Name is the member's path as cleaned by path.Clean("/"+name) without the
	// leading slash; "" is the root. Any byte but NUL can occur.
	Name string
	Type Type
	// Mode holds the permission bits with setuid 04000, setgid 02000 and sticky 01000.
	Mode     uint32
	UID, GID uint32
	// MtimeSec, MtimeNsec: modification time, Unix; seconds may be negative.
	MtimeSec  int64
	MtimeNsec uint32
	// Link is the target of a symlink (as is) or of a hard link (cleaned like Name).
	Link string
	// DevMajor, DevMinor of TypeChar and TypeBlock.
	DevMajor, DevMinor uint32
	// Xattrs are sorted by name.
	Xattrs []Xattr
	// Object is the content of a TypeReg entry with Size > 0.
	Object Digest
	// Size in bytes of a TypeReg entry.
	Size int64
}

// Object is the content of a regular file.
type Object struct {
	Digest Digest
	Size   int64
	// Pieces are the sha256 of each PieceSize piece; nil if Size <= PieceSize
	// (then Digest is the digest of the only piece).
	Pieces []Digest
}

// TOC is the table of contents of one layer.
type TOC struct {
	// DiffID is the sha256 of the layer's uncompressed tar.
	DiffID  Digest
	Entries []Entry
	// Objects are the distinct objects of Entries in the order of their first
	// appearance; their indices here are what bitmaps refer to.
	Objects []Object
}
