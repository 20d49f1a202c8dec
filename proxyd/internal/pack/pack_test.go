package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

var update = flag.Bool("update", false, "write the golden files")

// memory is a blob.Reader.
type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func open(t testing.TB, b []byte) *Reader {
	t.Helper()
	r, err := NewReader(memory{bytes.NewReader(b)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// write packs objects, each piece in a frame of its own.
func write(t testing.TB, contents ...[]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	var objects []Object
	n := uint32(0)
	for _, c := range contents {
		o := Object{Size: int64(len(c))}
		for len(c) > 0 {
			piece := c[:min(len(c), toc.PieceSize)]
			c = c[len(piece):]
			if err := w.Frame(Encode(nil, piece)); err != nil {
				t.Fatal(err)
			}
			o.Frames = append(o.Frames, n)
			n++
		}
		objects = append(objects, o)
	}
	if err := w.Finish(objects); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func random(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = src.Read(b)
	return b
}

func TestRoundTrip(t *testing.T) {
	contents := [][]byte{
		[]byte("x"),
		bytes.Repeat([]byte("compressible "), 1000),
		random(5000),
		bytes.Repeat([]byte("abcdefgh"), toc.PieceSize/8),                          // exactly one piece
		append(bytes.Repeat([]byte("abcdefgh"), toc.PieceSize/8), 'x'),             // a piece of one byte
		append(random(toc.PieceSize), bytes.Repeat([]byte("0"), toc.PieceSize)...), // stored and compressed
		random(toc.PieceSize*2 + 7),
	}
	r := open(t, write(t, contents...))
	if r.Objects() != len(contents) {
		t.Fatalf("Objects = %d, want %d", r.Objects(), len(contents))
	}
	for i, want := range contents {
		if r.Size(i) != int64(len(want)) {
			t.Errorf("Size(%d) = %d, want %d", i, r.Size(i), len(want))
		}
		got := []byte("prefix")
		for p := range r.Pieces(i) {
			enc, compressed, err := r.Piece(i, p)
			if err != nil {
				t.Fatal(err)
			}
			if len(enc) != r.StoredLen(i, p) {
				t.Errorf("object %d piece %d: %d bytes stored, StoredLen %d", i, p, len(enc), r.StoredLen(i, p))
			}
			if !compressed && len(enc) != r.PieceLen(i, p) {
				t.Errorf("object %d piece %d: %d plain bytes, PieceLen %d", i, p, len(enc), r.PieceLen(i, p))
			}
			if got, err = r.AppendPiece(got, i, p); err != nil {
				t.Fatal(err)
			}
		}
		if string(got) != "prefix"+string(want) {
			t.Errorf("object %d differs", i)
		}
		all, err := io.ReadAll(r.Object(i))
		if err != nil || !bytes.Equal(all, want) {
			t.Errorf("Object(%d) gives other bytes (%v)", i, err)
		}
	}
	b := make([]byte, 20)
	if _, err := r.Object(6).ReadAt(b, toc.PieceSize-10); err != nil || !bytes.Equal(b, contents[6][toc.PieceSize-10:toc.PieceSize+10]) {
		t.Errorf("ReadAt over two pieces: %v", err)
	}
	if n, err := r.Object(0).ReadAt(b, 0); n != 1 || !errors.Is(err, io.EOF) {
		t.Errorf("ReadAt over the end = %d, %v", n, err)
	}
}

func TestEmpty(t *testing.T) {
	if r := open(t, write(t)); r.Objects() != 0 {
		t.Errorf("Objects = %d, want 0", r.Objects())
	}
}

func TestSharedFrames(t *testing.T) {
	var buf bytes.Buffer
	w, err := NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, toc.PieceSize)
	if err := w.Frame(Encode(nil, zeros)); err != nil {
		t.Fatal(err)
	}
	if err := w.Frame(Encode(nil, []byte("end"))); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish([]Object{
		{Size: 3*toc.PieceSize + 3, Frames: []uint32{0, 0, 0, 1}},
		{Size: 3, Frames: []uint32{1}},
		{Size: toc.PieceSize, Frames: []uint32{0}},
	}); err != nil {
		t.Fatal(err)
	}
	r := open(t, buf.Bytes())
	got, err := io.ReadAll(r.Object(0))
	if err != nil || len(got) != 3*toc.PieceSize+3 || !strings.HasSuffix(string(got), "\x00end") {
		t.Errorf("object of shared frames: %d bytes, %v", len(got), err)
	}
}

func TestWriterRefuses(t *testing.T) {
	w, err := NewWriter(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{nil, make([]byte, toc.PieceSize+1)} {
		if err := w.Frame(b, false); !errors.Is(err, ErrInvalid) {
			t.Errorf("Frame of %d bytes: %v", len(b), err)
		}
	}
	if err := w.Frame([]byte("x"), false); err != nil {
		t.Fatal(err)
	}
	for _, o := range []Object{
		{Size: 0}, {Size: 1}, {Size: 1, Frames: []uint32{1}}, {Size: 1, Frames: []uint32{0, 0}}, {Size: -1, Frames: []uint32{0}},
	} {
		if err := w.Finish([]Object{o}); !errors.Is(err, ErrInvalid) {
			t.Errorf("Finish(%+v) = %v, want ErrInvalid", o, err)
		}
	}
}

// seal puts a head and a trailer around frames and an index.
func seal(frames, index []byte) []byte {
	b := append([]byte(head), frames...)
	b = append(b, index...)
	sum := sha256.Sum256(index)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(index)))
	return append(append(b, sum[:]...), tail...)
}

func TestReaderRefuses(t *testing.T) {
	good := write(t, []byte("hello"), bytes.Repeat([]byte("x"), 100))
	flip := func(i int) []byte {
		b := bytes.Clone(good)
		if i < 0 {
			i += len(b)
		}
		b[i] ^= 1
		return b
	}
	uvarints := func(v ...uint64) (b []byte) {
		for _, v := range v {
			b = binary.AppendUvarint(b, v)
		}
		return b
	}
	for name, b := range map[string][]byte{
		"empty":                      {},
		"short":                      good[:len(head)+trailerSize-1],
		"cut off":                    good[:len(good)-1],
		"version":                    flip(6),
		"tail":                       flip(-1),
		"checksum":                   flip(-10),
		"index":                      flip(-trailerSize - 1),
		"length of index":            flip(-trailerSize + 4),
		"no index":                   seal(nil, nil),
		"frame count":                seal(nil, uvarints(1<<40)),
		"frame of no bytes":          seal(nil, uvarints(1, 0, 0)),
		"frame too long":             seal(nil, uvarints(1, (toc.PieceSize+1)<<1, 0)),
		"frames beyond the index":    seal([]byte("x"), uvarints(1, 2<<1, 0)),
		"frames before the index":    seal([]byte("xx"), uvarints(1, 1<<1, 0)),
		"object count":               seal(nil, uvarints(0, 1<<40)),
		"object of no bytes":         seal([]byte("x"), uvarints(1, 1<<1, 1, 0, 0)),
		"object too large":           seal([]byte("x"), uvarints(1, 1<<1, 1, toc.MaxObjectSize+1, 0)),
		"object without its refs":    seal([]byte("x"), uvarints(1, 1<<1, 1, 1<<40, 0)),
		"ref after the last":         seal([]byte("x"), append(uvarints(1, 1<<1, 1, 1), binary.AppendVarint(nil, 1)...)),
		"ref before the first":       seal([]byte("x"), append(uvarints(1, 1<<1, 1, 1), binary.AppendVarint(nil, -1)...)),
		"ref overflows":              seal([]byte("x"), append(uvarints(1, 1<<1, 1, 1), binary.AppendVarint(nil, -1<<63)...)),
		"stored of another length":   seal([]byte("xx"), uvarints(1, 2<<1, 1, 1, 0)),
		"compressed and not shorter": seal([]byte("xx"), uvarints(1, 2<<1|1, 1, 2, 0)),
		"one frame for two lengths":  seal([]byte("x"), append(uvarints(1, 1<<1|1, 2, 2, 0, 3), binary.AppendVarint(nil, -1)...)),
		"left over":                  seal(nil, uvarints(0, 0, 0)),
	} {
		if _, err := NewReader(memory{bytes.NewReader(b)}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}

func TestReaderNoticesDamagedFrames(t *testing.T) {
	b := write(t, bytes.Repeat([]byte("some text "), 1000))
	b[len(head)+20] ^= 0x55
	if _, err := open(t, b).AppendPiece(nil, 0, 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

func TestGolden(t *testing.T) {
	// Not from the encoder, whose output may change with its version: a zstd
	// frame of 1000 times 'z' in one RLE block.
	rle := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x60, 0xe8, 0x02, 0x43, 0x1f, 0x00, 'z'}
	var buf bytes.Buffer
	w, err := NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		b          []byte
		compressed bool
	}{{[]byte("hello"), false}, {rle, true}, {[]byte("x"), false}} {
		if err := w.Frame(f.b, f.compressed); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish([]Object{{5, []uint32{0}}, {1000, []uint32{1}}, {1, []uint32{2}}, {5, []uint32{0}}}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "v2.pack")
	if *update {
		if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf.Bytes(), want) {
		t.Errorf("the format has changed:\ngot  %x\nwant %x", buf.Bytes(), want)
	}
	r := open(t, want)
	for i, s := range []string{"hello", strings.Repeat("z", 1000), "x", "hello"} {
		got, err := r.AppendPiece(nil, i, 0)
		if err != nil || string(got) != s {
			t.Errorf("object %d = %q, %v", i, got, err)
		}
	}
}

func FuzzDecodeIndex(f *testing.F) {
	b := write(f, []byte("hello"), bytes.Repeat([]byte("x"), 100), random(toc.PieceSize+1))
	n := int(binary.LittleEndian.Uint64(b[len(b)-trailerSize:]))
	end := len(b) - trailerSize - n
	f.Add(b[end:end+n], int64(end))
	f.Add([]byte{0, 0}, int64(len(head)))
	f.Add([]byte{1, 2, 2, 1, 0, 1, 1}, int64(len(head)+1))
	f.Fuzz(func(t *testing.T, enc []byte, end int64) {
		x, err := decodeIndex(enc, end)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("error of another class: %v", err)
			}
			return
		}
		for o := range x.Objects() {
			for p := range x.Pieces(o) {
				off, n, compressed := x.frame(o, p)
				if off < int64(len(head)) || n <= 0 || off+int64(n) > end || (!compressed && n != x.PieceLen(o, p)) {
					t.Fatalf("object %d piece %d at %d+%d of %d", o, p, off, n, end)
				}
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.Fatal(err)
	}
	exe = exe[:len(exe)/toc.PieceSize*toc.PieceSize]
	b.SetBytes(int64(len(exe)))
	var buf []byte
	for b.Loop() {
		for p := exe; len(p) > 0; p = p[toc.PieceSize:] {
			buf, _ = Encode(buf[:0], p[:toc.PieceSize])
		}
	}
}
