// Package trace turns reports of what starting containers read into an order of
// sending, for the image that was traced ([Aggregate]) and for its successors
// ([Profile]).
//
// Reports come from workers: they may be odd, or lie. So the order rests on
// medians over many starts and on shares of them, and nothing that a report says
// has any effect but on the order in which an image's own contents are sent.
package trace

import (
	"encoding/binary"
	"errors"
	"math"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Item is an object of an image, or a run of its pieces; Pieces 0 are all from
// First on.
type Item struct{ Object, First, Pieces uint32 }

// Trace is one start.
type Trace struct {
	// Partial: only what readers waited for was seen.
	Partial bool
	// Group of containers that were started together, or "".
	Group string
	// Items in the order of their first read.
	Items []TimedItem
}

// TimedItem is an Item and when it was first read, in milliseconds since the start.
type TimedItem struct {
	Item
	Time uint32
}

// FromWire is a trace as a worker reports it.
func FromWire(w *wire.Trace) Trace {
	t := Trace{Partial: w.Partial, Group: w.Group, Items: make([]TimedItem, len(w.Items))}
	for i, it := range w.Items {
		t.Items[i] = TimedItem{Item{it.Object, it.First, it.Pieces}, it.Time}
	}
	return t
}

// ErrFormat is returned for what Encode did not write.
var ErrFormat = errors.New("not an encoded trace")

const (
	version     = 2
	flagPartial = 1
)

// Encode gives the form in which a trace is stored: version, flags, group, and for
// each item the distance from the object before, pieces, and the time since the one
// before.
func (t *Trace) Encode() []byte {
	b := append(make([]byte, 0, 16+len(t.Group)+6*len(t.Items)), version)
	flags := byte(0)
	if t.Partial {
		flags |= flagPartial
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(len(t.Group)))
	b = append(b, t.Group...)
	object, at := int64(0), uint32(0)
	for _, it := range t.Items {
		b = binary.AppendVarint(b, int64(it.Object)-object)
		b = binary.AppendUvarint(b, uint64(it.First))
		b = binary.AppendUvarint(b, uint64(it.Pieces))
		b = binary.AppendUvarint(b, uint64(max(it.Time, at)-at))
		object, at = int64(it.Object), max(it.Time, at)
	}
	return b
}

// Decode reads what Encode wrote.
func Decode(b []byte) (*Trace, error) {
	d := &decoder{b: b}
	if d.byte() != version {
		return nil, ErrFormat
	}
	flags := d.byte()
	t := &Trace{Partial: flags&flagPartial != 0}
	n := d.uvarint(math.MaxUint32)
	if n > uint64(len(d.b)) || flags&^flagPartial != 0 {
		return nil, ErrFormat
	}
	t.Group, d.b = string(d.b[:n]), d.b[n:]
	object, at := int64(0), uint64(0)
	for len(d.b) > 0 && !d.bad {
		delta, n := binary.Varint(d.b)
		object += delta
		if n <= 0 || object < 0 || object > math.MaxUint32 || len(t.Items) == wire.MaxTraced {
			return nil, ErrFormat
		}
		d.b = d.b[n:]
		it := TimedItem{Item: Item{Object: uint32(object)}}
		it.First, it.Pieces = uint32(d.uvarint(math.MaxUint32)), uint32(d.uvarint(math.MaxUint32))
		if at += d.uvarint(wire.MaxTraceTime); at > wire.MaxTraceTime {
			return nil, ErrFormat
		}
		it.Time = uint32(at)
		t.Items = append(t.Items, it)
	}
	if d.bad {
		return nil, ErrFormat
	}
	return t, nil
}

// decoder reads numbers; bad says that one was missing or too large.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.bad = true
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}
