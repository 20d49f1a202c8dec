package delta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

type memFile struct{ *bytes.Reader }

func (memFile) Close() error { return nil }

// compress is what there is without the zstd program.
func compress(_ context.Context, dst, src []byte) ([]byte, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return nil, err
	}
	return enc.EncodeAll(src, dst), enc.Close()
}

func framesOf(t testing.TB, f *fixture, order Order) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteFrames(t.Context(), &b, f.img, Make(f.img, nil, order), f.packs, compress, 3); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openFrames(t testing.TB, f *fixture, b []byte) *Frames {
	t.Helper()
	frames, err := OpenFrames(memFile{bytes.NewReader(b)}, f.img)
	if err != nil {
		t.Fatal(err)
	}
	return frames
}

// freshFixture has text, a program that is this test, and things that do not compress.
func freshFixture(t testing.TB) *fixture {
	t.Helper()
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 3))
	l := newLayer()
	l.file(t, "bin/program", program[:min(len(program), 3<<20)])
	for i := range 300 {
		l.file(t, fmt.Sprintf("text/%d", i), randomBytes(r, 1+r.IntN(6000)))
	}
	noise := make([]byte, toc.PieceSize+1)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	l.file(t, "noise", noise)
	return newFixture(t, l)
}

// TestStreamOfFrames: whatever the worker has, and whatever the order was when the
// frames were made, it gets what it lacks.
func TestStreamOfFrames(t *testing.T) {
	f := freshFixture(t)
	hot := Order{Items: append(whole(3, 4, 5), Item{Object: 0, First: 2, Pieces: 1}), Hot: 4}
	frames := openFrames(t, f, framesOf(t, f, hot))
	few := bytes.Repeat([]byte{0x55}, (len(f.img.Objects)+7)/8)
	tests := map[string]struct {
		have  []Inventory
		order Order
		ready bool // all frames come out of the file
	}{
		"fresh":       {nil, hot, true},
		"other order": {nil, Order{Items: append(whole(90, 91), hot.Items...), Hot: 6}, false},
		"half":        {[]Inventory{{TOC: f.tocs[0], Missing: few}}, hot, false},
		"nothing":     {[]Inventory{{TOC: f.tocs[0]}}, hot, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := Make(f.img, tt.have, tt.order)
			c := NewClaims(f.img, p)
			w := newWorker()
			w.tolerant = true
			planned := map[uint32]bool{}
			for _, it := range p.Items {
				planned[it.Object] = true
			}
			for id := range f.img.Objects {
				if !planned[uint32(id)] {
					w.have[f.img.Objects[id].Digest] = nil
				}
			}
			b := bundle(t, func(w *wire.Writer) error {
				return Stream(t.Context(), w, f.img, p, f.packs, Steer{
					Skip: c.Skip, Urgent: c.Urgent, Frames: &FrameSource{Frames: frames, Claims: c},
				})
			})
			if err := w.receive(f.img.Objects, b); err != nil {
				t.Fatal(err)
			}
			for _, it := range p.Items {
				o := &f.img.Objects[it.Object]
				if sha256.Sum256(w.have[o.Digest]) != o.Digest {
					t.Fatalf("object %d is missing or wrong", it.Object)
				}
			}
			want := 0
			if len(p.Items) > 0 {
				want = len(frames.frames)
			}
			if tt.ready && len(w.frames) != want {
				t.Errorf("got %d frames, %d are stored", len(w.frames), want)
			}
		})
	}
}

// However many are compressed at a time, the file is the same.
func TestFramesAreWrittenInOrder(t *testing.T) {
	f := freshFixture(t)
	p := Make(f.img, nil, Order{Items: whole(3, 4, 5), Hot: 3})
	var one bytes.Buffer
	if err := WriteFrames(t.Context(), &one, f.img, p, f.packs, compress, 1); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(framesOf(t, f, Order{Items: whole(3, 4, 5), Hot: 3}), one.Bytes()) {
		t.Error("three at a time make another file than one")
	}
	broken := errors.New("broken")
	err := WriteFrames(t.Context(), io.Discard, f.img, p, f.packs, func(context.Context, []byte, []byte) ([]byte, error) { return nil, broken }, 3)
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want what compress says", err)
	}
}

func TestFramesAreSmaller(t *testing.T) {
	f := freshFixture(t)
	p := Make(f.img, nil, Order{Items: whole(3, 4, 5), Hot: 3})
	atOnce := len(stream(t, f, p, nil))
	made := len(framesOf(t, f, Order{Items: whole(3, 4, 5), Hot: 3}))
	t.Logf("%d bytes: %d at once, %d with time", p.Bytes, atOnce, made)
	if made > atOnce*95/100 {
		t.Errorf("got %d bytes, at once it is %d", made, atOnce)
	}
}

// A reader that waits does not wait for a large frame, when a piece will do.
func TestUrgentPiecesComeAlone(t *testing.T) {
	f := freshFixture(t)
	frames := openFrames(t, f, framesOf(t, f, Order{}))
	p := Make(f.img, nil, Order{})
	c := NewClaims(f.img, p)
	text := uint32(250)
	c.Urge(whole(text), true)
	w := newWorker()
	b := bundle(t, func(w *wire.Writer) error {
		return Stream(t.Context(), w, f.img, p, f.packs, Steer{Skip: c.Skip, Urgent: c.Urgent, Frames: &FrameSource{Frames: frames, Claims: c}})
	})
	w.tolerant = true
	if err := w.receive(f.img.Objects, b); err != nil {
		t.Fatal(err)
	}
	if w.pieces[0].Object != text || w.frames[0] > solid {
		t.Errorf("first came object %d in a frame of %d bytes, want %d alone", w.pieces[0].Object, w.frames[0], text)
	}
}

func TestOpenFramesRefuses(t *testing.T) {
	f := textFixture(t, 20, 3000, toc.PieceSize+5)
	good := framesOf(t, f, Order{})
	openFrames(t, f, good)
	with := func(index string) []byte {
		b := append([]byte(framesMagic), "xyz"...)
		b = append(b, index...)
		sum := sha256.Sum256([]byte(index))
		b = binary.LittleEndian.AppendUint64(b, uint64(len(index)))
		return append(b, sum[:]...)
	}
	tests := map[string][]byte{
		"empty": nil, "cut": good[:len(good)-1], "magic": append([]byte("X"), good[1:]...),
		"index":         append(bytes.Clone(good[:len(good)-60]), append([]byte{good[len(good)-60] + 1}, good[len(good)-59:]...)...),
		"no frames":     with(""),
		"object":        with("\x01\x06\x01\x00\x63\x00"),
		"piece":         with("\x01\x06\x01\x00\x00\x01"),
		"kind":          with("\x01\x06\x01\x02\x00\x00"),
		"entries cut":   with("\x01\x06\x7f\x00\x00\x00"),
		"longer":        with("\x01\x08\x01\x00\x00\x00"),
		"shorter":       with("\x01\x04\x01\x00\x00\x00"),
		"rest":          with("\x01\x06\x01\x00\x00\x00\x00"),
		"length of all": append(append(bytes.Clone(good[:len(good)-framesTrailer]), bytes.Repeat([]byte{0xff}, 8)...), good[len(good)-32:]...),
	}
	for name, b := range tests {
		if _, err := OpenFrames(memFile{bytes.NewReader(b)}, f.img); !errors.Is(err, ErrFrames) && !errors.Is(err, io.EOF) {
			t.Errorf("%s: got %v, want ErrFrames", name, err)
		}
	}
	if _, err := OpenFrames(memFile{bytes.NewReader(with("\x01\x06\x01\x00\x00\x00"))}, f.img); err != nil {
		t.Errorf("the frame of which the others are variants: %v", err)
	}
}

func BenchmarkStreamFrames(b *testing.B) {
	f := freshFixture(b)
	frames := openFrames(b, f, framesOf(b, f, Order{}))
	p := Make(f.img, nil, Order{})
	b.SetBytes(p.Bytes)
	b.ReportAllocs()
	for b.Loop() {
		c := NewClaims(f.img, p)
		err := Stream(b.Context(), wire.NewWriter(io.Discard), f.img, p, f.packs, Steer{Skip: c.Skip, Frames: &FrameSource{Frames: frames, Claims: c}})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteFrames(b *testing.B) {
	f := freshFixture(b)
	p := Make(f.img, nil, Order{})
	b.SetBytes(p.Bytes)
	for b.Loop() {
		if err := WriteFrames(b.Context(), io.Discard, f.img, p, f.packs, compress, 1); err != nil {
			b.Fatal(err)
		}
	}
}
