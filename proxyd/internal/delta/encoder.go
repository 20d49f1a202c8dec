package delta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/patch"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Patches gives patches that were made before. It is safe for concurrent use.
type Patches interface {
	// Patch returns the patch from one object to another, or nil if there is none. A
	// stream waits for it. What is not there may be made for the next worker.
	Patch(ctx context.Context, old, nw Source) (Patch, error)
}

// Source is an object and where it is stored: as number Number of the objects of
// the layer.
type Source struct {
	*toc.Object
	Layer  toc.Digest // diff ID
	Number int
}

// Patch is a stored patch. Its methods are called from one goroutine at a time.
type Patch interface {
	// Head is the head of the patch, which may be empty.
	Head() ([]byte, error)
	// Segment returns the segment of a piece as it is stored: one zstd frame if
	// compressed. length is what it decodes to, 0 if the piece should be sent plain.
	Segment(piece int) (enc []byte, compressed bool, length int, err error)
	Close() error
}

// Encoder makes the patches of all streams of a process, within bounds of
// processors and memory.
type Encoder struct {
	stored Patches
	procs  int
	cpu    *semaphore.Weighted
	memory *semaphore.Weighted
	total  int64
	pace   [2]atomic.Int64 // bytes a second that one processor patches, by method: HD, RD
}

// NewEncoder returns an Encoder that uses at most the given number of processors and
// bytes of memory. stored may be nil.
func NewEncoder(procs int, memory int64, stored Patches) *Encoder {
	e := &Encoder{
		stored: stored, procs: procs, total: memory,
		cpu: semaphore.NewWeighted(int64(procs)), memory: semaphore.NewWeighted(memory),
	}
	// Measured on one core of a small VM.
	e.pace[0].Store(60e6)
	e.pace[1].Store(20e6)
	return e
}

// Turn waits for a processor for other work of the process, which ends with done.
func (e *Encoder) Turn(ctx context.Context) (done func(), err error) {
	if err := e.cpu.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return func() { e.cpu.Release(1) }, nil
}

const (
	// worth is how many percent of the stored pieces a patch may have.
	worth = 85
	// worthSmall is the same for small objects, which are not sent as they are stored
	// but in solid frames, in which they are smaller.
	worthSmall = 60
	// tried is how many pieces decide whether a patch is worth it.
	tried = 3 << 20 / toc.PieceSize
	// near is how far away from its place something is looked for in the old object while a
	// stream waits, in bytes: files that grow by more at once are rare.
	near = 4 << 20
	// perPatch bounds the memory that a patch takes.
	perPatch = 96 << 20
)

// errNoGain ends the encoding of a patch that is hardly smaller than the object.
var errNoGain = errors.New("the patch does not pay")

// load gives a job the patch that was made before, if there is one.
func (e *Encoder) load(ctx context.Context, j *job, from, to Source) (found bool, err error) {
	if e.stored == nil {
		return false, nil
	}
	p, err := e.stored.Patch(ctx, from, to)
	if err != nil || p == nil {
		return false, err
	}
	return true, errors.Join(j.load(p), p.Close())
}

// run makes the patch of a job between objects of two packs, on a goroutine that does
// nothing else afterwards.
func (e *Encoder) run(ctx context.Context, j *job, old, nw Pack, from, to Source) error {
	weight := min(perPatch, 2*j.base.Size+1<<20, e.total)
	if err := e.memory.Acquire(ctx, weight); err != nil {
		return err
	}
	defer e.memory.Release(weight)
	if err := e.cpu.Acquire(ctx, 1); err != nil {
		return err
	}
	defer e.cpu.Release(1)
	if j.useless() {
		return nil
	}
	// Streams go first. At normal priority it is just slower for them.
	_ = background.Lower()
	start := time.Now()
	j.begin(start)
	o := patch.Options{Method: j.method, Memory: weight, Skip: j.skip}
	if j.method == patch.HD {
		o.Ahead = near // a reader may wait for the first segment
	}
	var sum, plain, made int
	err := patch.Encode(ctx, readObject(old, from.Number, j.base), readObject(nw, to.Number, j.object), j.base.Size, j.object.Size,
		o, func(piece int, s []byte) error {
			if piece == patch.Head {
				j.head = bytes.Clone(s)
				return nil
			}
			made += j.object.PieceLen(piece)
			stored := nw.Stored(to.Number, piece)
			seg, size := newSegment(s, j.object.Size)
			if piece == 0 {
				size += len(j.head) // they compress little
			}
			sum, plain = sum+size, plain+stored
			percent := worth
			if j.object.Size < SmallObject {
				percent = worthSmall
			}
			if (piece >= tried-1 || piece == j.object.NumPieces()-1) && sum*100 > plain*percent {
				return errNoGain
			}
			if size >= stored {
				seg = segment{plain: true}
			}
			j.put(piece, seg)
			return nil
		})
	// What was left out says nothing; and RD goes through all of an object, whatever it makes.
	if took := time.Since(start); err == nil && made >= 1<<20 && (j.method == patch.HD || int64(made) == j.object.Size) {
		e.learn(j.method, float64(made)/took.Seconds())
	}
	return err
}

// learn adapts the expected pace.
func (e *Encoder) learn(method patch.Method, pace float64) {
	p := &e.pace[paceOf(method)]
	p.Store(int64(float64(p.Load())*0.8 + pace*0.2))
}

func paceOf(method patch.Method) int {
	if method == patch.HD {
		return 0
	}
	return 1
}

// newSegment keeps what Encode emitted, and tells what it will take on the wire.
func newSegment(s []byte, size int64) (segment, int) {
	z, ok := wire.Compress(nil, s)
	if size < SmallObject { // goes into a frame with others
		return segment{enc: bytes.Clone(s), length: len(s)}, len(z) + 8
	}
	return segment{enc: bytes.Clone(z), compressed: ok, length: len(s)}, len(z)
}

// objectReader reads an object of a pack at random; it keeps the last piece.
type objectReader struct {
	pack   Pack
	number int
	object *toc.Object
	have   int
	buf    []byte
}

func readObject(p Pack, number int, o *toc.Object) io.ReaderAt {
	return &objectReader{pack: p, number: number, object: o, have: -1}
}

// ReadAt implements io.ReaderAt. Unlike others it is for one goroutine.
func (r *objectReader) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		if off < 0 || off >= r.object.Size {
			return n, io.EOF
		}
		if piece := int(off / toc.PieceSize); piece != r.have {
			r.have = -1
			if r.buf, err = r.pack.AppendPiece(r.buf[:0], r.number, piece); err != nil {
				return n, err
			}
			if len(r.buf) != r.object.PieceLen(piece) {
				return n, fmt.Errorf("object %s, piece %d has %d bytes in its pack: %w", r.object.Digest, piece, len(r.buf), toc.ErrInvalid)
			}
			r.have = piece
		}
		k := copy(p[n:], r.buf[off%toc.PieceSize:])
		n, off = n+k, off+int64(k)
	}
	return n, nil
}
