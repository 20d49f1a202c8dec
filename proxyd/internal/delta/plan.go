package delta

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// encoding is part of every plan's digest. It changes whenever Stream would
// write other bytes for the same plan.
const encoding = "starlight data frames 2\n"

// Inventory is a layer of which the worker has objects, or objects that it has in part,
// or not.
type Inventory struct {
	TOC *toc.TOC // nil: only Partial
	// Missing is [wire.Have].Missing: nil if it has all of them, else bit i is
	// set if it lacks object i of TOC.Objects. Objects beyond its end are there.
	Missing []byte
	Partial []wire.Partial
	// Lacks are objects of the image that the worker has not, whatever else is said.
	Lacks []uint32
}

// Item is an object, or a run of pieces of it: what orders and plans are made of.
type Item = wire.Range

// Order says in which order an image should be sent.
type Order struct {
	// Items, the most urgent first. An object may be in several of them: the pieces
	// that a start reads first, the others later. What is named wrongly or twice is
	// ignored, what is not named comes last.
	Items []Item
	// Hot is how many of Items a start of the image is expected to read. Nobody
	// is expected to wait for the others.
	Hot int
	// Group names containers that were traced together, and Times tell for each hot item
	// when it was read, in milliseconds since the first of them began: what images of a
	// group are sent at the same time is sent by these. They never decrease.
	Group string
	Times []uint32
}

// Plan is what a worker is sent.
type Plan struct {
	// Items in the order of sending. No piece is in two of them, and Pieces is never 0.
	Items []Item
	// Hot is how many of Items a start of the image is expected to read.
	Hot int
	// Group and Times are those of the order, for the hot items.
	Group string
	Times []uint32
	// Local is what a start of the image is expected to read of what the worker has.
	Local []Item
	// Objects is the number of objects, and Bytes their size, uncompressed.
	Objects int
	Bytes   int64
	// TotalObjects and TotalBytes are those of the image's tree, whatever the
	// worker has.
	TotalObjects int
	TotalBytes   int64
	// Digest names what the data frames bring, and in which order.
	Digest toc.Digest
}

// Make plans what to send of img to a worker with the given inventory.
func Make(img *Image, have []Inventory, order Order) *Plan {
	p := &Plan{TotalObjects: len(img.rest), TotalBytes: img.bytes, Group: order.Group}
	had := make([]bool, len(img.Objects))
	planned := newPieces(img)  // or not to be
	held := map[uint32]int64{} // bytes of pieces that the worker has
	for _, h := range have {
		if h.TOC != nil {
			img.mark(had, h)
		}
		img.markPieces(planned, held, h.Partial)
	}
	for _, h := range have {
		for _, id := range h.Lacks {
			had[id] = false
		}
	}
	p.Items = make([]Item, 0, max(len(img.rest), len(order.Items)))
	for i, it := range order.Items {
		if int64(it.Object) < int64(len(had)) && img.needed[it.Object] {
			switch {
			case !had[it.Object]:
				p.add(img, planned, it)
			case i < order.Hot && int64(it.First) < int64(img.Objects[it.Object].NumPieces()):
				p.Local = append(p.Local, it)
			}
		}
		if i < order.Hot {
			p.Hot = len(p.Items)
		}
		for i < len(order.Times) && len(p.Times) < p.Hot {
			p.Times = append(p.Times, order.Times[i])
		}
	}
	for _, id := range img.rest {
		if !had[id] {
			p.add(img, planned, Item{Object: id})
			p.Objects++
			p.Bytes += img.Objects[id].Size - held[id]
		}
	}
	p.Digest = img.digest(p)
	return p
}

// add appends what of it is not planned yet.
func (p *Plan) add(img *Image, planned pieces, it Item) {
	first, end := clip(it, img.Objects[it.Object].NumPieces())
	run := false // the last item goes on
	for i := first; i < end; i++ {
		switch {
		case !planned.set(it.Object, i):
			run = false
		case run:
			p.Items[len(p.Items)-1].Pieces++
		default:
			p.Items = append(p.Items, Item{Object: it.Object, First: uint32(i), Pieces: 1})
			run = true
		}
	}
}

// clip returns the pieces that an item names of an object that has n.
func clip(it Item, n int) (first, end int) {
	first, end = int(min(uint64(it.First), uint64(n))), n
	if it.Pieces > 0 {
		end = int(min(uint64(it.First)+uint64(it.Pieces), uint64(n)))
	}
	return first, end
}

// extend appends a piece to the last item, if it continues that, or as a new one.
func extend(items []Item, object uint32, piece int) []Item {
	if n := len(items); n > 0 {
		if last := &items[n-1]; last.Object == object && int64(last.First)+int64(last.Pieces) == int64(piece) {
			last.Pieces++
			return items
		}
	}
	return append(items, Item{Object: object, First: uint32(piece), Pieces: 1})
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

// markPieces adds the pieces that the worker has of img's objects to planned, and their
// size to held.
func (img *Image) markPieces(planned pieces, held map[uint32]int64, partial []wire.Partial) {
	for _, h := range partial {
		id, ok := img.index[h.Object]
		if !ok {
			continue
		}
		o := &img.Objects[id]
		for i := range o.NumPieces() {
			if i/8 < len(h.Pieces) && h.Pieces[i/8]&(1<<(i%8)) != 0 && planned.set(id, i) {
				held[id] += min(toc.PieceSize, o.Size-int64(i)*toc.PieceSize)
			}
		}
	}
}

func missing(bits []byte, i int) bool {
	return i/8 < len(bits) && bits[i/8]&(1<<(i%8)) != 0
}

// digest hashes what the frames are made of: numbers, which stand in them, and
// contents.
func (img *Image) digest(p *Plan) toc.Digest {
	h := sha256.New()
	h.Write([]byte(encoding))
	const batch = 128
	buf := make([]byte, 0, 8+batch*(12+len(toc.Digest{})))
	buf = binary.BigEndian.AppendUint64(buf, uint64(p.Hot))
	for i, it := range p.Items {
		buf = binary.BigEndian.AppendUint32(buf, it.Object)
		buf = binary.BigEndian.AppendUint32(buf, it.First)
		buf = binary.BigEndian.AppendUint32(buf, it.Pieces)
		buf = append(buf, img.Objects[it.Object].Digest[:]...)
		if i%batch == batch-1 {
			h.Write(buf)
			buf = buf[:0]
		}
	}
	h.Write(buf)
	var d toc.Digest
	h.Sum(d[:0])
	return d
}
