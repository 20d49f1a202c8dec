// Package erofsimg turns the tree of an image into an EROFS file system without
// file data, and mounts it.
//
// In it each regular file that is not empty carries the xattrs by which
// overlayfs (metacopy=on, redirect_dir=on) takes the data from the object
// /aa/<rest of the sha256> of a lower directory. Read without overlayfs the
// files are zeros, so nobody else may see the mount.
//
// That directory is a data-only layer (Linux 6.5), or else a layer as any other,
// whose names the image has to hide: see [Stacking].
package erofsimg

import (
	"fmt"
	"io"
	"os"

	"github.com/erofs/go-erofs"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Limits of the format, and of what writing an image may cost.
const (
	// maxXattrs is the size of all xattrs of an inode: h_shared_count and
	// i_xattr_icount count units of four bytes in 16 bits.
	maxXattrs = (1<<16-2)*4 + xattrHeader
	// maxXattr is the size of one value, e_value_size.
	maxXattr = 1<<16 - 1

	blockSize   = 4096
	xattrHeader = 12
	xattrEntry  = 4

	// maxData bounds the sum of the file sizes: go-erofs takes 24 bytes of
	// memory for each 256 MiB, whether they exist or not.
	maxData = 1 << 50
)

// Write writes the image of t to f, which has to be empty. The same tree gives
// the same bytes. Trees that EROFS cannot hold give an error that wraps
// toc.ErrInvalid.
func Write(f *os.File, t *toc.Tree, s Stacking) error {
	var opaque map[*toc.Inode]bool
	if s == Ordinary {
		t, opaque = hideObjects(t)
	}
	links, err := check(t)
	if err != nil {
		return err
	}
	// A fixed time makes the image reproducible. The files with this time get
	// inodes of 32 bytes rather than 64.
	w := erofs.Create(f, erofs.WithBuildTime(0, 0), erofs.WithBlockSize(blockSize))
	if err := w.CopyFrom(treeFS{t, links, opaque}, erofs.MetadataOnly()); err != nil {
		return fmt.Errorf("failed to lay out EROFS image: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("failed to write EROFS image: %w", err)
	}
	if len(links) > 0 {
		if err := patchLinks(f, t, links); err != nil {
			return fmt.Errorf("failed to write hard links of EROFS image: %w", err)
		}
	}
	// fsck.erofs 1.5 reads an xattr header behind each inode, also behind the
	// last one and where it has none.
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return f.Truncate(end + blockSize)
}

// check finds what go-erofs would write truncated, and the hard links: all
// inodes with more than one name, each with the first of them.
func check(t *toc.Tree) (map[*toc.Inode]*toc.Node, error) {
	var (
		data  int64
		first = map[*toc.Inode]*toc.Node{}
		links = map[*toc.Inode]*toc.Node{}
	)
	err := t.Walk(func(path string, n *toc.Node) error {
		if n.Type != toc.TypeDir && n.Nlink > 1 {
			if f := first[n.Inode]; f != nil {
				links[n.Inode] = f
				return nil
			}
			first[n.Inode] = n
		}
		if n.Size < 0 || n.Size > maxData-data {
			return fmt.Errorf("files are larger than %d bytes together: %w", maxData, toc.ErrInvalid)
		}
		data += n.Size
		total := xattrHeader
		for name, value := range xattrs(n.Inode) {
			if len(value) > maxXattr || len(name) > 255 {
				return fmt.Errorf("%.300q: xattr %q of %d bytes: %w", path, name, len(value), toc.ErrInvalid)
			}
			// The prefix of the name is not stored, and padding is at most 3.
			total += xattrEntry + len(name) + len(value) + 3
		}
		if total > maxXattrs {
			return fmt.Errorf("%.300q: xattrs are larger than %d bytes: %w", path, maxXattrs, toc.ErrInvalid)
		}
		return nil
	})
	return links, err
}
