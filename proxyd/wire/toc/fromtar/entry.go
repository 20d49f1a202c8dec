package fromtar

import (
	"archive/tar"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	xattrPrefix    = "SCHILY.xattr."
	sparsePrefix   = "GNU.sparse."
	whiteoutPrefix = ".wh."
)

// types are the types of members that containerd unpacks.
var types = map[byte]toc.Type{
	tar.TypeReg:     toc.TypeReg,
	tar.TypeDir:     toc.TypeDir,
	tar.TypeSymlink: toc.TypeSymlink,
	tar.TypeLink:    toc.TypeLink,
	tar.TypeChar:    toc.TypeChar,
	tar.TypeBlock:   toc.TypeBlock,
	tar.TypeFifo:    toc.TypeFifo,
}

// entry describes a member of a tar. What containerd would refuse, or could not
// unpack as it is written, is refused here. The result of strings is not shared
// with the header: those can be small parts of a large one.
func entry(h *tar.Header) (*toc.Entry, error) {
	e := &toc.Entry{
		Name:      clean(h.Name),
		Mode:      uint32(h.Mode & 0o7777),
		MtimeSec:  h.ModTime.Unix(),
		MtimeNsec: uint32(h.ModTime.Nanosecond()),
	}
	var err error
	if e.UID, err = id("uid", h.Uid); err != nil {
		return nil, err
	}
	if e.GID, err = id("gid", h.Gid); err != nil {
		return nil, err
	}
	// What kind of member asks for a whiteout does not matter, nor what it contains.
	if strings.HasPrefix(path.Base(e.Name), whiteoutPrefix) {
		return e, nil
	}
	t, ok := types[h.Typeflag]
	if !ok {
		return nil, layerErrorf("member of type %q", h.Typeflag)
	}
	e.Type = t
	switch t {
	case toc.TypeReg:
		e.Size = h.Size
	case toc.TypeSymlink:
		e.Link = strings.Clone(h.Linkname)
	case toc.TypeLink:
		e.Link = clean(h.Linkname)
	case toc.TypeChar, toc.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return nil, layerErrorf("device number %d:%d", h.Devmajor, h.Devminor)
		}
		e.DevMajor, e.DevMinor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	e.Xattrs = xattrs(h)
	return e, nil
}

// clean makes a name relative to the root, with nothing above it.
func clean(name string) string { return strings.Clone(path.Clean("/" + name)[1:]) }

// id checks a uid or gid. The largest number means "do not change" to chown(2).
func id(what string, n int) (uint32, error) {
	if n < 0 || n >= math.MaxUint32 {
		return 0, layerErrorf("%s %d", what, n)
	}
	return uint32(n), nil
}

// xattrs returns the extended attributes that containerd reads.
func xattrs(h *tar.Header) []toc.Xattr {
	var set []toc.Xattr
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, xattrPrefix); ok {
			set = append(set, toc.Xattr{Name: strings.Clone(name), Value: strings.Clone(v)})
		}
	}
	slices.SortFunc(set, func(a, b toc.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return set
}

// sparse tells whether a member has holes. archive/tar reads those of PAX.
func sparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, sparsePrefix) {
			return true
		}
	}
	return false
}

// cost is about what an entry takes in memory.
func cost(e *toc.Entry) int {
	n := 200 + len(e.Name) + len(e.Link)
	for _, x := range e.Xattrs {
		n += 32 + len(x.Name) + len(x.Value)
	}
	return n
}
