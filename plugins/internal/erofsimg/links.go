package erofsimg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// What patchLinks has to know of the format, from linux/fs/erofs/erofs_fs.h.
const (
	superOffset    = 1024
	superBlkBits   = 12 // u8
	superRootNid   = 14 // u16
	superMetaBlock = 40 // u32
	superSize      = 128

	inodeSlot     = 32 // bytes per node ID, and of a compact inode
	inodeExtended = 64

	layoutPlain  = 0
	layoutInline = 2

	direntSize = 12 // u64 nid, u16 offset of the name, u8 type, u8 reserved
)

var errLayout = errors.New("unexpected layout")

// patchLinks makes the names of hard links refer to one inode. go-erofs writes
// an inode for each name; the superfluous ones become unreachable.
func patchLinks(f *os.File, t *toc.Tree, links map[*toc.Inode]*toc.Node) error {
	img, err := openImage(f)
	if err != nil {
		return err
	}
	type patch struct {
		offset int64 // of a dirent
		inode  *toc.Inode
	}
	type todo struct {
		node *toc.Node
		nid  uint64
	}
	var (
		nids    = make(map[*toc.Inode]uint64, len(links))
		patches []patch
	)
	for queue := []todo{{t.Root, img.root}}; len(queue) > 0; {
		d := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		dirents, err := img.readDir(d.nid)
		if err != nil {
			return err
		}
		for _, c := range d.node.Children {
			e, ok := dirents[c.Name]
			if !ok {
				return fmt.Errorf("%q is not in its directory: %w", c.Name, errLayout)
			}
			switch first := links[c.Inode]; {
			case c.Type == toc.TypeDir:
				queue = append(queue, todo{c, e.nid})
			case first == c:
				nids[c.Inode] = e.nid
			case first != nil:
				patches = append(patches, patch{e.offset, c.Inode})
			}
		}
	}
	var nid [8]byte
	for _, p := range patches {
		binary.LittleEndian.PutUint64(nid[:], nids[p.inode])
		if _, err := f.WriteAt(nid[:], p.offset); err != nil {
			return err
		}
	}
	return nil
}

// image reads the directories of an image that go-erofs wrote.
type image struct {
	f         *os.File
	blockSize int64
	meta      int64 // offset of node 0
	root      uint64
}

func openImage(f *os.File) (*image, error) {
	var super [superSize]byte
	if _, err := f.ReadAt(super[:], superOffset); err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	bits := super[superBlkBits]
	return &image{
		f:         f,
		blockSize: 1 << bits,
		meta:      int64(binary.LittleEndian.Uint32(super[superMetaBlock:])) << bits,
		root:      uint64(binary.LittleEndian.Uint16(super[superRootNid:])),
	}, nil
}

type dirent struct {
	nid    uint64
	offset int64 // in the image
}

// readDir returns the entries of the directory with the node ID.
func (img *image) readDir(nid uint64) (map[string]dirent, error) {
	at := img.meta + int64(nid)*inodeSlot
	var inode [inodeExtended]byte
	if _, err := img.f.ReadAt(inode[:inodeSlot], at); err != nil {
		return nil, fmt.Errorf("inode %d: %w", nid, err)
	}
	format := binary.LittleEndian.Uint16(inode[0:])
	header, size := int64(inodeSlot), int64(binary.LittleEndian.Uint32(inode[8:]))
	if format&1 != 0 {
		// The upper half of the size is 0 in all that fits in this format.
		header = inodeExtended
	}
	if n := int64(binary.LittleEndian.Uint16(inode[2:])); n > 0 {
		header += xattrHeader + (n-1)*xattrEntry
	}
	data := at + header
	switch layout := format >> 1 & 7; layout {
	case layoutInline:
	case layoutPlain:
		data = int64(binary.LittleEndian.Uint32(inode[16:])) * img.blockSize
	default:
		return nil, fmt.Errorf("directory %d has layout %d: %w", nid, layout, errLayout)
	}
	buf := make([]byte, size)
	if _, err := img.f.ReadAt(buf, data); err != nil {
		return nil, fmt.Errorf("directory %d: %w", nid, err)
	}
	dirents := map[string]dirent{}
	for start := int64(0); start < size; start += img.blockSize {
		block := buf[start:min(start+img.blockSize, size)]
		if err := parseBlock(block, data+start, dirents); err != nil {
			return nil, fmt.Errorf("directory %d: %w", nid, err)
		}
	}
	return dirents, nil
}

// parseBlock adds the entries in a block, which is at offset in the image.
func parseBlock(block []byte, offset int64, dirents map[string]dirent) error {
	if len(block) < direntSize {
		return errLayout
	}
	nameOffset := func(i int) int { return int(binary.LittleEndian.Uint16(block[i*direntSize+8:])) }
	n := nameOffset(0) / direntSize
	if n*direntSize > len(block) {
		return errLayout
	}
	for i := range n {
		start, end := nameOffset(i), len(block)
		if i+1 < n {
			end = nameOffset(i + 1)
		}
		if start > end || end > len(block) {
			return errLayout
		}
		name := block[start:end]
		if i+1 == n {
			// The last name ends at a NUL or with the block.
			for len(name) > 0 && name[len(name)-1] == 0 {
				name = name[:len(name)-1]
			}
		}
		dirents[string(name)] = dirent{binary.LittleEndian.Uint64(block[i*direntSize:]), offset + int64(i*direntSize)}
	}
	return nil
}
