package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/starlight-delta/starlight/proxyd/wire/patch"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

var update = flag.Bool("update", false, "write the golden files")

func digestOf(s string) toc.Digest { return sha256.Sum256([]byte(s)) }

var text = []byte(strings.Repeat("all work and no play makes jack a dull boy\n", 100))

func testHeader() *Header {
	return &Header{
		Stream: "s1", Plan: digestOf("plan"),
		Blobs: []Blob{{"m", digestOf("manifest"), 8}, {"c", digestOf("config"), int64(len(text))}},
		Layers: []Layer{
			{DiffID: digestOf("1"), Digest: digestOf("l1"), Size: 10, MediaType: "l", TOC: digestOf("t1"), Sent: true},
			{DiffID: digestOf("2"), Digest: digestOf("l2"), Size: 20, MediaType: "l"},
			{DiffID: digestOf("3"), Digest: digestOf("l3"), Size: 30, MediaType: "l", TOC: digestOf("t3"), Sent: true,
				Base: &Base{DiffID: digestOf("0"), TOC: digestOf("t0")}},
		},
		Bases:   []toc.Digest{digestOf("2"), digestOf("4")},
		Objects: 3, Bytes: 5000, TotalObjects: 10, TotalBytes: 1 << 40,
	}
}

// step writes one frame; want is what the Reader must make of it.
type step struct {
	write func(*Writer) error
	want  Frame
}

func dataStep(index []Piece, plain []byte, compress bool) step {
	contents := plain
	if compress {
		contents, compress = Compress(nil, plain)
	}
	return step{
		func(w *Writer) error { return w.Data(index, contents, compress) },
		Frame{Type: FrameData, Data: &Data{Index: index, Contents: plain}},
	}
}

func fullBundle() []step {
	h := testHeader()
	tocs := [][]byte{text, {}}
	p := Progress{Stage: "ingest", Done: 1, Total: 2}
	local := []Range{{Object: 5}, {Object: 6}, {Object: 4_294_967_295, First: 3}, {Object: 0, First: 1, Pieces: 4_294_967_295}}
	return []step{
		{func(w *Writer) error { return w.Progress(p) }, Frame{Type: FrameProgress, Progress: &p}},
		{func(w *Writer) error { return w.Header(h) }, Frame{Type: FrameHeader, Header: h}},
		{func(w *Writer) error { return w.Blob([]byte("manifest")) }, Frame{Type: FrameBlob, Payload: []byte("manifest")}},
		{func(w *Writer) error { return w.Blob(text) }, Frame{Type: FrameBlob, Payload: text}},
		{func(w *Writer) error { return w.TOC(tocs[0]) }, Frame{Type: FrameTOC, Payload: tocs[0]}},
		{func(w *Writer) error { return w.TOC(tocs[1]) }, Frame{Type: FrameTOC, Payload: tocs[1]}},
		{func(w *Writer) error { return w.Local(local) }, Frame{Type: FrameLocal, Local: local}},
		dataStep([]Piece{{Object: 0, Length: 300}, {Object: 4_000_000_000, Piece: 70_000, Length: len(text) - 300}}, text, true),
		dataStep([]Piece{{Object: 7, Length: 3}}, []byte("abc"), false),
		dataStep([]Piece{
			{Kind: KindBase, Object: 8, Layer: 1, Base: 4_000_000_000, Length: 2}, {Kind: KindSegment, Object: 8, Piece: 3, Length: 1},
			{Kind: KindBase, Object: 9}, {Kind: KindSegment, Object: 9, Length: 1},
			{Kind: KindX86, Object: 10, Piece: 1, Length: 1}, {Kind: KindARM64, Object: 11, Length: 1},
		}, []byte("headsxa"[1:]), false),
		{(*Writer).End, Frame{Type: FrameEnd}},
	}
}

func writeBundle(t testing.TB, steps []step) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for i, s := range steps {
		if err := s.write(w); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
	if w.Written() != int64(b.Len()) {
		t.Fatalf("Written: got %d, want %d", w.Written(), b.Len())
	}
	return b.Bytes()
}

func TestBundleRoundTrip(t *testing.T) {
	plan := &Plan{
		Manifest: digestOf("manifest"), Layers: 3, KnownLayers: 1, LayerBytes: 60, PlainBytes: 40, Strange: 2,
		Total: Share{Objects: 10, Bytes: 1 << 40}, Local: Share{Objects: 7, Bytes: 6000}, Patched: Share{1, 4000, 40}, New: Share{2, 1000, 400},
		Metadata: 100, Wire: 540, MostWire: 2000, Files: []PlanFile{{Path: "usr/bin/app", Bytes: 4000, Wire: 40, Patched: true}},
	}
	failure := &Error{Code: CodeUpstream, Message: "no route"}
	bundles := map[string][]step{
		"full":   fullBundle(),
		"resume": append([]step{fullBundle()[1]}, fullBundle()[4:]...),
		"plan":   {fullBundle()[0], {func(w *Writer) error { return w.Plan(plan) }, Frame{Type: FramePlan, Plan: plan}}},
		"retry":  {fullBundle()[0], {(*Writer).Retry, Frame{Type: FrameRetry}}},
		"error": append(fullBundle()[:5:5],
			step{func(w *Writer) error { return w.Error(failure) }, Frame{Type: FrameError, Err: failure}}),
		"header only": append(fullBundle()[:6:6], fullBundle()[10]),
	}
	for name, steps := range bundles {
		t.Run(name, func(t *testing.T) {
			b := writeBundle(t, steps)
			rd := NewReader(iotest.OneByteReader(bytes.NewReader(b)))
			for i, s := range steps {
				got, err := rd.Next()
				if err != nil {
					t.Fatalf("frame %d: %v", i, err)
				}
				if got.Data != nil {
					s.want.Data.Wire = got.Data.Wire
				}
				if d := cmp.Diff(s.want, got, cmpopts.IgnoreUnexported(Data{})); d != "" && (len(s.want.Payload) != 0 || len(got.Payload) != 0) {
					t.Fatalf("frame %d differs (-want +got):\n%s", i, d)
				}
			}
			for range 2 {
				if _, err := rd.Next(); !errors.Is(err, io.EOF) {
					t.Fatalf("after the end: got %v, want EOF", err)
				}
			}
		})
	}
}

// What a detached Reader gives stays right while frames are decoded later.
func TestDetachedReader(t *testing.T) {
	rd := NewReader(bytes.NewReader(writeBundle(t, fullBundle())))
	rd.Detach()
	var frames []*Data
	for {
		f, err := rd.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.Data != nil {
			frames = append(frames, f.Data)
		}
	}
	for i, d := range frames {
		want := fullBundle()[7+i].want.Data
		got, err := d.Decode(nil)
		if err != nil || !bytes.Equal(got, want.Contents) || d.Size() != len(got) {
			t.Errorf("frame %d: got %d bytes of %d, %v", i, len(got), d.Size(), err)
		}
		if diff := cmp.Diff(want.Index, d.Index); diff != "" {
			t.Errorf("frame %d: index differs (-want +got):\n%s", i, diff)
		}
		d.Release()
	}
	if len(frames) != 3 {
		t.Errorf("got %d data frames, want 3", len(frames))
	}
}

func TestDataWireCountsEveryByte(t *testing.T) {
	data := fullBundle()[7:9]
	b := writeBundle(t, append(data, fullBundle()[10]))
	rd := NewObjectsReader(bytes.NewReader(b))
	sum := len(preamble) + 3 // preamble and end
	for range data {
		f, err := rd.Next()
		if err != nil {
			t.Fatal(err)
		}
		sum += f.Data.Wire
	}
	if sum != len(b) {
		t.Errorf("got %d bytes, the bundle has %d", sum, len(b))
	}
}

func TestWriterGolden(t *testing.T) {
	file := filepath.Join("testdata", "full.bundle")
	got := writeBundle(t, fullBundle())
	if *update {
		writeFile(t, file, got)
		for name, b := range fuzzSeeds(t, got) {
			seed := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\nbool(%v)\n", b, strings.HasPrefix(name, "objects"))
			writeFile(t, filepath.Join("testdata", "fuzz", "FuzzReader", name), []byte(seed))
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// Not byte by byte: another release of zstd may compress otherwise.
	readers := []*Reader{NewReader(bytes.NewReader(want)), NewReader(bytes.NewReader(got))}
	for {
		w, werr := readers[0].Next()
		g, gerr := readers[1].Next()
		if w.Data != nil && g.Data != nil {
			w.Data.Wire, g.Data.Wire = 0, 0
		}
		if d := cmp.Diff(w, g, cmpopts.IgnoreUnexported(Data{})); d != "" || !errors.Is(gerr, werr) {
			t.Fatalf("the bundle of an older release reads otherwise: %v, %v (-old +new):\n%s", werr, gerr, d)
		}
		if werr != nil {
			break
		}
	}
}

func fuzzSeeds(t *testing.T, full []byte) map[string][]byte {
	data := append(fullBundle()[6:8:8], fullBundle()[10])
	return map[string][]byte{
		"full":    full,
		"objects": writeBundle(t, data),
		"plan":    writeBundle(t, []step{{func(w *Writer) error { return w.Plan(&Plan{Files: []PlanFile{{Path: "a"}}}) }, Frame{}}}),
		"retry":   writeBundle(t, []step{fullBundle()[0], {(*Writer).Retry, Frame{}}}),
		"cut":     full[:len(full)/2],
	}
}

func writeFile(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func drain(rd *Reader) error {
	for {
		if _, err := rd.Next(); err != nil {
			return err
		}
	}
}

func TestReaderReportsTruncation(t *testing.T) {
	b := writeBundle(t, fullBundle())
	for i := range b {
		if err := drain(NewReader(bytes.NewReader(b[:i]))); !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut at %d of %d: got %v, want ErrTruncated", i, len(b), err)
		}
	}
}

func TestReaderPassesErrorsOn(t *testing.T) {
	b := writeBundle(t, fullBundle())
	broken := errors.New("connection reset")
	err := drain(NewReader(io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(broken))))
	if !errors.Is(err, broken) || errors.Is(err, ErrTruncated) {
		t.Errorf("got %v, want the error of the stream", err)
	}
}

// rawFrame puts together a frame that no Writer would write.
func rawFrame(t FrameType, flags byte, payload string) string {
	b := []byte{byte(t), flags}
	b = binary.AppendUvarint(b, uint64(len(payload)))
	return string(b) + payload
}

func announce(t FrameType, length uint64) string {
	return string(binary.AppendUvarint([]byte{byte(t), 0}, length))
}

// dataPayload is an index of plain entries (object, piece, length) and contents.
func dataPayload(contents string, entries ...[3]uint64) string {
	b := binary.AppendUvarint(nil, uint64(len(entries)))
	for _, e := range entries {
		b = append(b, byte(KindPlain))
		for _, v := range e {
			b = binary.AppendUvarint(b, v)
		}
	}
	return string(b) + contents
}

// What package patch makes of incompressible pieces, and the largest heads, are sent, too.
func TestLongestEntries(t *testing.T) {
	for kind, most := range map[Kind]int{KindPlain: toc.PieceSize, KindBase: patch.MaxHead, KindSegment: patch.MaxSegment, KindX86: toc.PieceSize} {
		for _, n := range []int{most, most + 1} {
			var b bytes.Buffer
			w := NewWriter(&b)
			err := w.Header(&Header{Bases: []toc.Digest{digestOf("1")}})
			if err == nil {
				err = w.Data([]Piece{{Kind: kind, Length: n}}, make([]byte, n), false)
			}
			if n > most {
				if !errors.Is(err, toc.ErrInvalid) {
					t.Errorf("kind %d, %d bytes: got %v, want ErrInvalid", kind, n, err)
				}
				continue
			}
			if err == nil {
				err = w.End()
			}
			if err != nil {
				t.Fatal(err)
			}
			r := NewReader(&b)
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
			if f, err := r.Next(); err != nil || f.Data == nil || f.Data.Index[0].Length != n {
				t.Errorf("kind %d, %d bytes: got %+v, %v", kind, n, f, err)
			}
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	header := rawFrame(FrameHeader, 0, `{"blobs":[{"size":1}],"layers":[{"sent":true}]}`)
	plain := rawFrame(FrameHeader, 0, `{}`)
	blob, tocFrame, end := rawFrame(FrameBlob, 0, "b"), rawFrame(FrameTOC, 0, "t"), rawFrame(FrameEnd, 0, "")
	data := rawFrame(FrameData, 0, dataPayload("x", [3]uint64{0, 0, 1}))
	progress := rawFrame(FrameProgress, 0, "{}")
	bomb, _ := Compress(nil, make([]byte, MaxHeader+1))
	tests := map[string]string{
		"progress after header": plain + progress,
		"two headers":           plain + plain,
		"retry after header":    plain + rawFrame(FrameRetry, 0, ""),
		"data first":            data,
		"end first":             end,
		"blob first":            blob,
		"blob too many":         header + blob + blob,
		"blob after toc":        header + blob + tocFrame + blob,
		"toc without header's":  plain + tocFrame,
		"toc before all blobs":  rawFrame(FrameHeader, 0, `{"blobs":[{"size":1},{"size":1}],"layers":[{"sent":true}]}`) + blob + tocFrame,
		"data before toc":       header + blob + data,
		"end before toc":        header + blob + end,
		"end before all blobs":  rawFrame(FrameHeader, 0, `{"blobs":[{"size":1},{"size":1}]}`) + blob + end,
		"toc after data":        plain + data + tocFrame,
		"blob of another size":  header + rawFrame(FrameBlob, 0, "bb"),
		"bytes after the end":   plain + end + "x",
		"bytes after error":     rawFrame(FrameError, 0, "{}") + "x",
		"type 0":                rawFrame(0, 0, ""),
		"type 11":               rawFrame(FrameLocal+1, 0, ""),
		"plan after header":     plain + rawFrame(FramePlan, 0, "{}"),
		"bytes after plan":      rawFrame(FramePlan, 0, "{}") + "x",
		"plan of many files":    rawFrame(FramePlan, 0, `{"files":[{}`+strings.Repeat(",{}", MaxTop)+`]}`),
		"plan of known layers":  rawFrame(FramePlan, 0, `{"layers":1,"knownLayers":2}`),
		"plan of negative size": rawFrame(FramePlan, 0, `{"wire":-1}`),
		"plan of negative part": rawFrame(FramePlan, 0, `{"new":{"bytes":-1}}`),
		"local before toc":      header + blob + rawFrame(FrameLocal, 0, "\x00"),
		"local after data":      plain + data + rawFrame(FrameLocal, 0, "\x00"),
		"local twice":           plain + rawFrame(FrameLocal, 0, "\x00") + rawFrame(FrameLocal, 0, "\x00"),
		"local below 0":         plain + rawFrame(FrameLocal, 0, "\x03"),
		"local far out":         plain + rawFrame(FrameLocal, 0, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
		"local cut off":         plain + rawFrame(FrameLocal, 0, "\x02\x00"),
		"many local ones":       plain + rawFrame(FrameLocal, 0, strings.Repeat("\x00", MaxLocal+1)),
		"long local":            plain + announce(FrameLocal, maxLocal+1),
		"flags":                 rawFrame(FrameProgress, 2, "{}"),
		"end with payload":      plain + rawFrame(FrameEnd, 0, "x"),
		"compressed end":        plain + rawFrame(FrameEnd, flagCompressed, ""),
		"length overflows":      string([]byte{byte(FrameHeader), 0}) + strings.Repeat("\xff", 11),
		"long header":           announce(FrameHeader, MaxHeader+1),
		"long blob":             header + announce(FrameBlob, MaxBlob+1),
		"long toc":              header + blob + announce(FrameTOC, MaxTOCFrame+1),
		"long data":             plain + announce(FrameData, MaxData+MaxDataIndex+1),
		"header bomb":           rawFrame(FrameHeader, flagCompressed, string(bomb)),
		"no zstd":               rawFrame(FrameHeader, flagCompressed, "{}"),
		"no JSON":               rawFrame(FrameHeader, 0, "{"),
		"null":                  rawFrame(FrameHeader, 0, "null"),
		"bad digest":            rawFrame(FrameHeader, 0, `{"plan":"sha256:zz"}`),
		"too many blobs":        rawFrame(FrameHeader, 0, `{"blobs":[{},{},{},{}]}`),
		"too many layers":       rawFrame(FrameHeader, 0, `{"layers":[{}`+strings.Repeat(",{}", MaxLayers)+`]}`),
		"negative blob":         rawFrame(FrameHeader, 0, `{"blobs":[{"size":-1}]}`),
		"huge blob":             rawFrame(FrameHeader, 0, `{"blobs":[{"size":99999999999}]}`),
		"negative layer":        rawFrame(FrameHeader, 0, `{"layers":[{"size":-1}]}`),
		"negative bytes":        rawFrame(FrameHeader, 0, `{"bytes":-1}`),
		"more than all":         rawFrame(FrameHeader, 0, `{"objects":2,"totalObjects":1}`),
		"data without index":    plain + rawFrame(FrameData, 0, ""),
		"data without entries":  plain + rawFrame(FrameData, 0, "\x00"),
		"data index cut":        plain + rawFrame(FrameData, 0, "\x05\x00\x01"),
		"data too many entries": plain + rawFrame(FrameData, 0, string(binary.AppendUvarint(nil, MaxCount+1))),
		"data of unknown kind":  plain + rawFrame(FrameData, 0, "\x01\x05\x00\x00\x01x"),
		"data without bases":    plain + rawFrame(FrameData, 0, "\x01\x01\x00\x00\x00\x01x"),
		"data of base out of range": rawFrame(FrameHeader, 0, `{"bases":["`+digestOf("1").String()+`"]}`) +
			rawFrame(FrameData, 0, "\x01\x01\x00\x01\x00\x01x"),
		"too many bases":           rawFrame(FrameHeader, 0, `{"bases":["`+digestOf("1").String()+`"`+strings.Repeat(`,"`+digestOf("1").String()+`"`, MaxHave)+`]}`),
		"data piece of 0 bytes":    plain + rawFrame(FrameData, 0, dataPayload("", [3]uint64{0, 0, 0})),
		"data piece too long":      plain + rawFrame(FrameData, 0, dataPayload("", [3]uint64{0, 0, toc.PieceSize + 1})),
		"data object over 32 bits": plain + rawFrame(FrameData, 0, dataPayload("x", [3]uint64{1 << 32, 0, 1})),
		"data piece number":        plain + rawFrame(FrameData, 0, dataPayload("x", [3]uint64{0, 1 << 32, 1})),
		"data contents short":      plain + rawFrame(FrameData, 0, dataPayload("x", [3]uint64{0, 0, 2})),
		"data contents long":       plain + rawFrame(FrameData, 0, dataPayload("xx", [3]uint64{0, 0, 1})),
		"data over the limit": plain + rawFrame(FrameData, 0, dataPayload("",
			append(slices.Repeat([][3]uint64{{0, 0, toc.PieceSize}}, MaxData/toc.PieceSize), [3]uint64{0, 4, 1})...)),
		"data bomb":  plain + rawFrame(FrameData, flagCompressed, dataPayload(string(bomb), [3]uint64{0, 0, 1000})),
		"data short": plain + rawFrame(FrameData, flagCompressed, dataPayload(string(bomb[:0]), [3]uint64{0, 0, 1000})),
	}
	for name, frames := range tests {
		t.Run(name, func(t *testing.T) {
			err := drain(NewReader(strings.NewReader(preamble + frames)))
			if !errors.Is(err, toc.ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		})
	}
	for name, b := range map[string]string{
		"magic": "SLDC\x03\x00\x00\x00", "reserved": "SLDB\x03\x00\x01\x00", "html": "<html><body>",
		"header in objects": preamble + plain, "progress in objects": preamble + progress,
	} {
		if err := drain(NewObjectsReader(strings.NewReader(b))); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	if err := drain(NewReader(strings.NewReader("SLDB\x01\x00\x00\x00"))); !errors.Is(err, ErrVersion) {
		t.Errorf("version 1: got %v, want ErrVersion", err)
	}
}

func TestWriterRefuses(t *testing.T) {
	long := make([]byte, MaxBlob+1)
	tests := map[string]func(*Writer) error{
		"blob":    func(w *Writer) error { return w.Blob(long) },
		"index":   func(w *Writer) error { return w.Data(nil, nil, false) },
		"sum":     func(w *Writer) error { return w.Data([]Piece{{Length: 2}}, []byte("x"), false) },
		"piece":   func(w *Writer) error { return w.Data([]Piece{{Length: 0}}, nil, false) },
		"entries": func(w *Writer) error { return w.Data(make([]Piece, MaxCount+1), nil, true) },
	}
	for name, write := range tests {
		w := NewWriter(io.Discard)
		if err := write(w); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
		if err := w.End(); err == nil {
			t.Errorf("%s: the Writer went on after an error", name)
		}
	}
}

type flushCounter struct {
	io.Writer
	n int
}

func (f *flushCounter) Flush() { f.n++ }

func TestWriterFlushes(t *testing.T) {
	f := &flushCounter{Writer: io.Discard}
	w := NewWriter(f)
	want := []int{1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6}
	for i, s := range fullBundle() {
		if err := s.write(w); err != nil {
			t.Fatal(err)
		}
		if f.n != want[i] {
			t.Errorf("after frame %d: got %d flushes, want %d", i, f.n, want[i])
		}
	}
}

func TestCompressIsDeterministic(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var inputs, first [][]byte
	for range 20 {
		b := bytes.Repeat(text, 1+r.IntN(50))
		for range len(b) / 10 {
			b[r.IntN(len(b))] = byte(r.Uint32())
		}
		z, _ := Compress(nil, b)
		inputs, first = append(inputs, b), append(first, bytes.Clone(z))
	}
	for range 200 {
		i := r.IntN(len(inputs))
		if z, _ := Compress(nil, inputs[i]); !bytes.Equal(z, first[i]) {
			t.Fatal("the same input was compressed to other bytes")
		}
	}
}

func FuzzReader(f *testing.F) {
	// Seeds stand in testdata; TestWriterGolden writes them.
	f.Fuzz(func(t *testing.T, b []byte, objects bool) {
		rd := NewReader(bytes.NewReader(b))
		if objects {
			rd = NewObjectsReader(bytes.NewReader(b))
		}
		for {
			fr, err := rd.Next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, ErrTruncated) && !errors.Is(err, toc.ErrInvalid) {
					t.Fatalf("unexpected class of error: %v", err)
				}
				return
			}
			if fr.Type == FrameData {
				sum := 0
				for _, p := range fr.Data.Index {
					sum += p.Length
				}
				if sum != len(fr.Data.Contents) || sum > MaxData {
					t.Fatalf("data frame with %d bytes, its index says %d", len(fr.Data.Contents), sum)
				}
			}
		}
	})
}

func BenchmarkReaderData(b *testing.B) {
	plain := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range plain {
		plain[i] = "etaoin shrdlu\n"[r.IntN(14)]
	}
	var index []Piece
	for i := range 256 {
		index = append(index, Piece{Object: uint32(i), Length: len(plain) / 256})
	}
	frame := writeBundle(b, []step{dataStep(index, plain, true)})[len(preamble):]
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() {
		_, err := io.WriteString(pw, preamble)
		for err == nil {
			_, err = pw.Write(frame)
		}
	}()
	rd := NewObjectsReader(pr)
	b.SetBytes(int64(len(plain)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rd.Next(); err != nil {
			b.Fatal(err)
		}
	}
}
