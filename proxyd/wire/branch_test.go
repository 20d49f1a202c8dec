package wire

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Whatever is filtered comes back, also what is no code.
func TestFilterRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 3000 {
		piece := r.Uint32N(4)
		b := make([]byte, r.IntN(300))
		for i := range b {
			b[i] = []byte{0xe8, 0xe9, 0, 0xff, byte(r.Uint32()), 0x94, 0x97, 1}[r.IntN(8)]
		}
		size := int64(piece)*toc.PieceSize + int64(len(b)) + r.Int64N(1<<r.IntN(33))
		for _, kind := range []Kind{KindX86, KindARM64, KindPlain} {
			got := bytes.Clone(b)
			Filter(kind, got, piece, size)
			if kind == KindPlain && !bytes.Equal(got, b) {
				t.Fatal("a plain piece was filtered")
			}
			Unfilter(kind, got, piece, size)
			if !bytes.Equal(got, b) {
				t.Fatalf("kind %d, piece %d of an object of %d bytes: %x became %x", kind, piece, size, b, got)
			}
		}
	}
}

func TestFilterMakesCallsEqual(t *testing.T) {
	const target = 0x1234
	x86, arm64 := make([]byte, 4000), make([]byte, 4000)
	for i := 0; i+8 <= len(x86); i += 8 {
		x86[i] = 0xe8
		binary.LittleEndian.PutUint32(x86[i+1:], uint32(int32(target-(toc.PieceSize+i+5))))
		binary.LittleEndian.PutUint32(arm64[i:], 0x94000000|uint32((target-(toc.PieceSize+i))/4)&(1<<26-1))
	}
	for kind, b := range map[Kind][]byte{KindX86: x86, KindARM64: arm64} {
		Filter(kind, b, 1, 3*toc.PieceSize)
		if want := bytes.Repeat(b[:8], len(b)/8); !bytes.Equal(b, want) {
			t.Errorf("kind %d: calls of one function still differ", kind)
		}
	}
}

// The filter is for programs such as this test.
func TestFilterHelpsPrograms(t *testing.T) {
	f, err := elf.Open(os.Args[0])
	if err != nil {
		t.Skip("no ELF program: ", err)
	}
	defer f.Close()
	kind := map[elf.Machine]Kind{elf.EM_X86_64: KindX86, elf.EM_AARCH64: KindARM64}[f.Machine]
	text, err := f.Section(".text").Data()
	if err != nil {
		t.Fatal(err)
	}
	text = text[:min(len(text), toc.PieceSize)]
	before, _ := Compress(nil, text)
	filtered := bytes.Clone(text)
	Filter(kind, filtered, 0, int64(len(text))*4)
	after, _ := Compress(nil, filtered)
	t.Logf("%d bytes: %d compressed, %d filtered", len(text), len(before), len(after))
	if len(after) >= len(before) {
		t.Errorf("got %d bytes, %d without the filter", len(after), len(before))
	}
}

func BenchmarkUnfilter(b *testing.B) {
	text := make([]byte, toc.PieceSize)
	for i := range text {
		text[i] = byte(rand.Uint32())
	}
	for name, kind := range map[string]Kind{"x86": KindX86, "arm64": KindARM64} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				Unfilter(kind, text, 0, toc.PieceSize)
			}
		})
	}
}
