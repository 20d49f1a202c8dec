// Package erofsimgtest makes layers for tests: as tars, for containerd to
// unpack, and as tables of contents with their objects, for Starlight to mount.
package erofsimgtest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const paxXattr = "SCHILY.xattr."

// Entry is a member of a layer's tar.
type Entry struct {
	tar.Header
	Content string
}

// With changes the header of a copy of e.
func (e Entry) With(f func(h *tar.Header)) Entry {
	e.PAXRecords = maps.Clone(e.PAXRecords)
	f(&e.Header)
	return e
}

// Xattr returns e with an xattr.
func (e Entry) Xattr(name, value string) Entry {
	return e.With(func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+name] = value
	})
}

// Mode returns e with permission bits.
func (e Entry) Mode(mode int64) Entry { return e.With(func(h *tar.Header) { h.Mode = mode }) }

// Owner returns e with an owner.
func (e Entry) Owner(uid, gid int) Entry {
	return e.With(func(h *tar.Header) { h.Uid, h.Gid = uid, gid })
}

// Time returns e with a time of modification.
func (e Entry) Time(sec, nsec int64) Entry {
	return e.With(func(h *tar.Header) { h.ModTime = time.Unix(sec, nsec) })
}

func entry(typ byte, name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: mode, ModTime: time.Unix(1_000_000_000, 123456789)}}
}

// File is a regular file.
func File(name, content string) Entry {
	e := entry(tar.TypeReg, name, 0o644)
	e.Content, e.Size = content, int64(len(content))
	return e
}

// Dir is a directory.
func Dir(name string) Entry { return entry(tar.TypeDir, name+"/", 0o755) }

// Symlink is a symlink.
func Symlink(name, target string) Entry {
	return entry(tar.TypeSymlink, name, 0o777).With(func(h *tar.Header) { h.Linkname = target })
}

// Link is a hard link.
func Link(name, target string) Entry {
	return entry(tar.TypeLink, name, 0o644).With(func(h *tar.Header) { h.Linkname = target })
}

// Char is a character device, Block a block device.
func Char(name string, major, minor int64) Entry {
	return entry(tar.TypeChar, name, 0o600).With(func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor })
}

// Block is a block device.
func Block(name string, major, minor int64) Entry {
	return entry(tar.TypeBlock, name, 0o660).With(func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor })
}

// Fifo is a named pipe.
func Fifo(name string) Entry { return entry(tar.TypeFifo, name, 0o640) }

// Whiteout hides a name of the layers below.
func Whiteout(name string) Entry {
	return entry(tar.TypeReg, path.Join(path.Dir(name), ".wh."+path.Base(name)), 0o600)
}

// Opaque hides all that the layers below have in a directory.
func Opaque(dir string) Entry { return entry(tar.TypeReg, path.Join(dir, ".wh..wh..opq"), 0o600) }

// Layer is the members of a tar in order.
type Layer []Entry

// Tar writes the layer's tar.
func (l Layer) Tar() ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range l {
		e.Format = tar.FormatPAX
		if err := w.WriteHeader(&e.Header); err != nil {
			return nil, fmt.Errorf("%q: %w", e.Name, err)
		}
		if _, err := io.WriteString(w, e.Content); err != nil {
			return nil, fmt.Errorf("%q: %w", e.Name, err)
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

var types = map[byte]toc.Type{
	tar.TypeReg:     toc.TypeReg,
	tar.TypeDir:     toc.TypeDir,
	tar.TypeSymlink: toc.TypeSymlink,
	tar.TypeLink:    toc.TypeLink,
	tar.TypeChar:    toc.TypeChar,
	tar.TypeBlock:   toc.TypeBlock,
	tar.TypeFifo:    toc.TypeFifo,
}

// TOC returns the table of contents of a tar. It writes the objects below the
// directory objects, unless that is "".
func TOC(layer []byte, objects string) (*toc.TOC, error) {
	t := &toc.TOC{DiffID: toc.Digest(sha256.Sum256(layer))}
	seen := map[toc.Digest]bool{}
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		typ, ok := types[h.Typeflag]
		if !ok {
			return nil, fmt.Errorf("%q: type %q", h.Name, h.Typeflag)
		}
		e := toc.Entry{
			Name: clean(h.Name), Type: typ,
			Mode: uint32(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid),
			MtimeSec: h.ModTime.Unix(), MtimeNsec: uint32(h.ModTime.Nanosecond()),
		}
		switch typ {
		case toc.TypeSymlink:
			e.Link = h.Linkname
		case toc.TypeLink:
			e.Link = clean(h.Linkname)
		case toc.TypeChar, toc.TypeBlock:
			e.DevMajor, e.DevMinor = uint32(h.Devmajor), uint32(h.Devminor)
		}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, paxXattr); ok {
				e.Xattrs = append(e.Xattrs, toc.Xattr{Name: name, Value: v})
			}
		}
		slices.SortFunc(e.Xattrs, func(a, b toc.Xattr) int { return strings.Compare(a.Name, b.Name) })
		if typ == toc.TypeReg && h.Size > 0 {
			content, err := io.ReadAll(r)
			if err != nil {
				return nil, err
			}
			e.Size, e.Object = int64(len(content)), toc.Digest(sha256.Sum256(content))
			if !seen[e.Object] {
				seen[e.Object] = true
				t.Objects = append(t.Objects, toc.Object{Digest: e.Object, Size: e.Size})
			}
			if err := writeObject(objects, e.Object, content); err != nil {
				return nil, err
			}
		}
		t.Entries = append(t.Entries, e)
	}
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func writeObject(dir string, d toc.Digest, content []byte) error {
	if dir == "" {
		return nil
	}
	name := filepath.Join(dir, d.Path())
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	err := os.WriteFile(name, content, 0o400)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}
