package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// keepBuffer is the size up to which buffers are kept from one frame to the next.
const keepBuffer = 4 << 20

// Reader reads a bundle. It refuses every frame that is malformed, too large or
// out of order. Between frames it holds a few MiB at most. It is not safe for
// concurrent use.
//
// What it cannot know without the TOCs is left to its user: whether objects and
// pieces exist, have the length that the index says, and come in order.
type Reader struct {
	r     *bufio.Reader
	state state
	err   error // sticky

	objects bool   // the bundle has no header
	blobs   []Blob // of the header, not seen yet
	first   bool   // no blob was seen
	tocs    int    // toc frames to come
	bases   int    // layers that patches may be made against

	detached bool

	wire  []byte // payload as it came
	plain []byte // payload decoded
	data  Data
}

type state uint8

const (
	beforePreamble state = iota
	beforeHeader
	afterHeader
	inData
	ended
)

// NewReader returns a Reader of a bundle that answers a [DeltaRequest].
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, 64<<10)}
}

// NewObjectsReader returns a Reader of a bundle that answers an
// [ObjectsRequest]: data frames and end.
func NewObjectsReader(r io.Reader) *Reader {
	rd := NewReader(r)
	rd.objects = true
	return rd
}

// Detach makes the Reader leave data frames undecoded, and to their receiver: they
// stay valid until released.
func (r *Reader) Detach() { r.detached = true }

// Next returns the next frame. What it points to is valid until the next call.
//
// After a frame that ends the bundle (retry, end, plan, error) it returns io.EOF, having
// read the stream to its end. A bundle without such a frame gives an error that
// wraps [ErrTruncated], anything malformed one that wraps [toc.ErrInvalid], and
// errors of the stream are returned wrapped. Errors are final.
func (r *Reader) Next() (Frame, error) {
	if r.err != nil {
		return Frame{}, r.err
	}
	f, err := r.next()
	if err != nil {
		r.err = err
		r.wire, r.plain, r.data = nil, nil, Data{}
		return Frame{}, err
	}
	return f, nil
}

func (r *Reader) next() (Frame, error) {
	if r.state == ended {
		if _, err := r.r.ReadByte(); err == nil {
			return Frame{}, invalid("bytes after the end")
		} else if !errors.Is(err, io.EOF) {
			return Frame{}, fmt.Errorf("read bundle: %w", err)
		}
		return Frame{}, io.EOF
	}
	if r.state == beforePreamble {
		if err := r.readPreamble(); err != nil {
			return Frame{}, err
		}
	}
	t, compressed, length, head, err := r.readHead()
	if err != nil {
		return Frame{}, err
	}
	if err := r.enter(t); err != nil {
		return Frame{}, err
	}
	if t == FrameData && r.detached {
		r.wire = *raws.Get().(*[]byte)
	}
	if err := r.readPayload(length); err != nil {
		return Frame{}, err
	}
	if t == FrameData {
		d := &r.data
		if r.detached {
			d = new(Data)
		}
		if err := r.parseData(d, compressed); err != nil {
			return Frame{}, err
		}
		d.Wire = head + length
		return Frame{Type: t, Data: d}, nil
	}
	payload := r.wire
	if compressed {
		r.plain, err = decompressLimit(shrink(r.plain), r.wire, limit(t))
		if err != nil {
			return Frame{}, fmt.Errorf("bundle: %s: %w", t, err)
		}
		payload = r.plain
	}
	return r.parse(t, payload)
}

func (r *Reader) readPreamble() error {
	var b [len(preamble)]byte
	if _, err := io.ReadFull(r.r, b[:]); err != nil {
		return cut(err)
	}
	const magic = 4
	switch {
	case string(b[:magic]) != preamble[:magic]:
		return invalid("this is no bundle")
	case b[magic] != Version:
		return fmt.Errorf("bundle of version %d: %w: %w", b[magic], ErrVersion, toc.ErrInvalid)
	case string(b[:]) != preamble:
		return invalid("reserved bytes are set")
	}
	r.state = beforeHeader
	if r.objects {
		r.state = inData
	}
	return nil
}

// readHead reads type, flags and length, and refuses lengths over the limit of
// the type. head is the number of bytes read.
func (r *Reader) readHead() (t FrameType, compressed bool, length, head int, err error) {
	var b [2]byte
	if _, err := io.ReadFull(r.r, b[:]); err != nil {
		return 0, false, 0, 0, cut(err)
	}
	t, compressed = FrameType(b[0]), b[1] == flagCompressed
	if t < FrameProgress || t > FrameLocal {
		return 0, false, 0, 0, invalid("%s", t)
	}
	if b[1]&^flagCompressed != 0 {
		return 0, false, 0, 0, invalid("%s has flags %#x", t, b[1])
	}
	n, err := binary.ReadUvarint(r.r)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, false, 0, 0, cut(err)
		}
		return 0, false, 0, 0, fmt.Errorf("bundle: length of %s: %w: %w", t, err, toc.ErrInvalid)
	}
	most := uint64(limit(t))
	if t == FrameData {
		most += MaxDataIndex
	}
	if n > most {
		return 0, false, 0, 0, invalid("%s of %d bytes", t, n)
	}
	if most == 0 && compressed {
		return 0, false, 0, 0, invalid("%s is compressed", t)
	}
	return t, compressed, int(n), len(b) + uvarintLen(n), nil
}

// enter checks that a frame of type t may come now.
func (r *Reader) enter(t FrameType) error {
	ok := false
	switch t {
	case FrameProgress, FrameHeader:
		ok = r.state == beforeHeader
	case FrameRetry, FramePlan:
		ok = r.state == beforeHeader
		r.state = ended
	case FrameBlob:
		ok = r.state == afterHeader && len(r.blobs) > 0
	case FrameTOC:
		// All blobs or none: a resumed pull has them.
		ok = r.state == afterHeader && (len(r.blobs) == 0 || r.first) && r.tocs > 0
		r.blobs, r.first = nil, false
	case FrameLocal, FrameData, FrameEnd:
		ok = r.state == inData && t != FrameLocal || r.state == afterHeader && r.tocs == 0 && (len(r.blobs) == 0 || r.first)
		r.state = inData
		if t == FrameEnd {
			r.state = ended
		}
	case FrameError:
		ok = true
		r.state = ended
	}
	if !ok {
		return invalid("%s frame out of order", t)
	}
	return nil
}

// readPayload reads n bytes into r.wire, which grows as they come and not by
// what the peer announces.
func (r *Reader) readPayload(n int) error {
	const step = 1 << 20
	b := shrink(r.wire)[:0]
	for len(b) < n {
		at := len(b)
		b = slices.Grow(b, min(n-at, max(step, at)))
		b = b[:min(cap(b), n)]
		if _, err := io.ReadFull(r.r, b[at:]); err != nil {
			return cut(err)
		}
	}
	r.wire = b
	return nil
}

func (r *Reader) parse(t FrameType, payload []byte) (Frame, error) {
	f := Frame{Type: t}
	var err error
	switch t {
	case FrameProgress:
		f.Progress = new(Progress)
		err = unmarshal(payload, f.Progress)
	case FrameHeader:
		f.Header = new(Header)
		if err = unmarshal(payload, f.Header); err == nil {
			err = r.accept(f.Header)
		}
	case FrameError:
		f.Err = new(Error)
		err = unmarshal(payload, f.Err)
	case FramePlan:
		f.Plan = new(Plan)
		if err = unmarshal(payload, f.Plan); err == nil {
			err = f.Plan.validate()
		}
	case FrameBlob:
		if int64(len(payload)) != r.blobs[0].Size {
			err = invalid("it has %d bytes, the header says %d", len(payload), r.blobs[0].Size)
		}
		r.blobs, r.first = r.blobs[1:], false
		f.Payload = payload
	case FrameTOC:
		r.tocs--
		f.Payload = payload
	case FrameLocal:
		f.Local, err = DecodeRanges(payload, MaxLocal)
	}
	if err != nil {
		return Frame{}, fmt.Errorf("%s frame: %w", t, err)
	}
	return f, nil
}

// accept checks a header and prepares for the frames that it announces.
func (r *Reader) accept(h *Header) error {
	const maxBlobs = 3 // index, manifest, config
	switch {
	case len(h.Blobs) > maxBlobs:
		return invalid("%d blobs", len(h.Blobs))
	case len(h.Layers) > MaxLayers || len(h.Bases) > MaxHave:
		return invalid("%d layers, %d bases", len(h.Layers), len(h.Bases))
	case h.Objects < 0 || h.Bytes < 0 || h.TotalObjects < h.Objects || h.TotalBytes < h.Bytes:
		return invalid("impossible totals")
	}
	for _, b := range h.Blobs {
		if b.Size < 0 || b.Size > MaxBlob {
			return invalid("blob of %d bytes", b.Size)
		}
	}
	for _, l := range h.Layers {
		if l.Size < 0 {
			return invalid("layer of %d bytes", l.Size)
		}
		if l.Sent {
			r.tocs++
		} else if l.Base != nil {
			return invalid("layer %s has a base and is not sent", l.DiffID)
		}
	}
	r.state, r.blobs, r.first, r.bases = afterHeader, slices.Clone(h.Blobs), true, len(h.Bases)
	return nil
}

// parseData parses r.wire as a data frame into d, and decodes it unless detached.
func (r *Reader) parseData(d *Data, compressed bool) error {
	in := uvarints{b: r.wire}
	count := in.next(MaxCount)
	if in.bad || count == 0 {
		return invalid("data frame has a malformed index")
	}
	d.size, d.Index = 0, d.Index[:0]
	for range count {
		p := Piece{Kind: Kind(in.byte()), Object: uint32(in.next(1<<32 - 1))}
		if p.Kind == KindBase {
			p.Layer, p.Base = uint32(in.next(MaxHave)), uint32(in.next(1<<32-1))
		} else {
			p.Piece = uint32(in.next(toc.MaxObjectSize / toc.PieceSize))
		}
		p.Length = int(in.next(uint64(longest(p.Kind))))
		switch {
		case in.bad, p.Length == 0 && p.Kind != KindBase:
			return invalid("data frame has a malformed index")
		case p.Kind >= kinds:
			return invalid("data frame has an entry of kind %d", p.Kind)
		case p.Kind == KindBase && int64(p.Layer) >= int64(r.bases):
			return invalid("data frame names base layer %d of %d", p.Layer, r.bases)
		}
		if d.size += p.Length; d.size > MaxData {
			return invalid("data frame of more than %d bytes", MaxData)
		}
		d.Index = append(d.Index, p)
	}
	d.raw, d.contents, d.compressed = r.wire, in.b, compressed
	if len(r.wire)-len(in.b) > MaxDataIndex || len(in.b) > MaxData {
		return invalid("data frame of %d bytes", len(r.wire))
	}
	if !compressed && len(in.b) != d.size {
		return invalid("data frame has %d bytes, its index says %d", len(in.b), d.size)
	}
	if r.detached {
		r.wire = nil
		return nil
	}
	if !compressed {
		d.Contents = in.b
		return nil
	}
	out, err := d.Decode(shrink(r.plain))
	r.plain, d.Contents = out, out
	return err
}

// limit returns the largest payload of a frame type, on the wire and decoded.
func limit(t FrameType) int {
	switch t {
	case FrameProgress, FrameHeader, FrameError, FramePlan:
		return MaxHeader
	case FrameBlob:
		return MaxBlob
	case FrameTOC:
		return MaxTOCFrame
	case FrameData:
		return MaxData
	case FrameLocal:
		return maxLocal
	default:
		return 0
	}
}

// shrink drops a buffer that a rare large frame has left behind.
func shrink(b []byte) []byte {
	if cap(b) > keepBuffer+MaxDataIndex {
		return nil
	}
	return b
}

// cut turns the end of the stream into ErrTruncated.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read bundle: %w", ErrTruncated)
	}
	return fmt.Errorf("read bundle: %w", err)
}

func uvarintLen(n uint64) int {
	return len(binary.AppendUvarint(make([]byte, 0, binary.MaxVarintLen64), n))
}

// uvarints reads bounded numbers from b; bad is set once anything is malformed.
type uvarints struct {
	b   []byte
	bad bool
}

func (u *uvarints) next(most uint64) uint64 {
	v, n := binary.Uvarint(u.b)
	if n <= 0 || v > most {
		u.bad, u.b = true, nil
		return 0
	}
	u.b = u.b[n:]
	return v
}

func (u *uvarints) byte() byte {
	if len(u.b) == 0 {
		u.bad = true
		return 0
	}
	c := u.b[0]
	u.b = u.b[1:]
	return c
}
