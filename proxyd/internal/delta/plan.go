package delta

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// encoding is part of every plan's digest. It changes whenever Stream would
// write other bytes for the same plan.
const encoding = "starlight data frames 1\n"

// Inventory is a layer of which the worker has objects.
type Inventory struct {
	TOC *toc.TOC
	// Missing is [wire.Have].Missing: nil if it has all of them, else bit i is
	// set if it lacks object i of TOC.Objects. Objects beyond its end are there.
	Missing []byte
}

// Plan is what a worker is sent.
type Plan struct {
	// Objects are indices into Image.Objects, in the order of sending.
	Objects []uint32
	// Bytes of Objects, uncompressed.
	Bytes int64
	// TotalObjects and TotalBytes are those of the image's tree, whatever the
	// worker has.
	TotalObjects int
	TotalBytes   int64
	// Digest names everything that determines the data frames: equal digests
	// mean equal frames, as long as nothing is skipped.
	Digest toc.Digest
}

// Make plans what to send of img to a worker with the given inventory. order names
// objects, the most urgent first; it may name any part of them, and what it
// names wrongly or twice is ignored. Objects that it does not name come after it.
func Make(img *Image, have []Inventory, order []uint32) *Plan {
	p := &Plan{TotalObjects: len(img.rest), TotalBytes: img.bytes}
	done := make([]bool, len(img.Objects)) // had or planned
	for _, h := range have {
		img.mark(done, h)
	}
	p.Objects = make([]uint32, 0, len(img.rest))
	for _, list := range [...][]uint32{order, img.rest} {
		for _, id := range list {
			if int64(id) < int64(len(done)) && img.needed[id] && !done[id] {
				done[id] = true
				p.Objects = append(p.Objects, id)
				p.Bytes += img.Objects[id].Size
			}
		}
	}
	p.Digest = img.digest(p.Objects)
	return p
}

// mark sets done for the objects of img that are in h.
func (img *Image) mark(done []bool, h Inventory) {
	if ids, ok := img.layers[h.TOC.DiffID]; ok && len(ids) == len(h.TOC.Objects) {
		for i, id := range ids {
			if !missing(h.Missing, i) {
				done[id] = true
			}
		}
		return
	}
	for i := range h.TOC.Objects {
		if missing(h.Missing, i) {
			continue
		}
		if id, ok := img.index[h.TOC.Objects[i].Digest]; ok {
			done[id] = true
		}
	}
}

func missing(bits []byte, i int) bool {
	return i/8 < len(bits) && bits[i/8]&(1<<(i%8)) != 0
}

// digest hashes what the frames are made of: indices, which stand in them, and
// contents.
func (img *Image) digest(objects []uint32) toc.Digest {
	h := sha256.New()
	h.Write([]byte(encoding))
	const batch = 128
	buf := make([]byte, 0, batch*(4+len(toc.Digest{})))
	for i, id := range objects {
		buf = binary.BigEndian.AppendUint32(buf, id)
		buf = append(buf, img.Objects[id].Digest[:]...)
		if len(buf) == cap(buf) || i == len(objects)-1 {
			h.Write(buf)
			buf = buf[:0]
		}
	}
	var d toc.Digest
	h.Sum(d[:0])
	return d
}
