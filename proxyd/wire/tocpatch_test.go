package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// layerTOC is a layer of n files, of which each changed-th is another than in
// other versions of it.
func layerTOC(t testing.TB, version, n, changed int) []byte {
	t.Helper()
	b := toc.NewBuilder()
	for i := range n {
		at := 0
		if i%changed == changed/2 {
			at = version
		}
		e := toc.Entry{
			Name: fmt.Sprintf("usr/lib/node_modules/package%d/lib/file%d.js", i/20, i), Mode: 0o644,
			MtimeSec: 1_700_000_000 + int64(at)*1000 + int64(i%7), Size: int64(1000 + (i*7919+at*31)%20_000),
			Object: digestOf(fmt.Sprint("file", i, at)),
		}
		if _, _, err := b.Add(e, nil); err != nil {
			t.Fatal(err)
		}
	}
	return b.TOC(digestOf(fmt.Sprint("layer", version))).Encode()
}

func TestTOCPatch(t *testing.T) {
	for _, c := range []struct{ n, changed int }{{0, 1}, {1, 1}, {100, 3}, {5_000, 50}, {40_000, 1_000}} {
		base, encoded := layerTOC(t, 1, c.n, c.changed), layerTOC(t, 2, c.n, c.changed)
		p, err := PatchTOC(t.Context(), base, encoded)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ApplyTOCPatch(base, p)
		if err != nil || !bytes.Equal(got, encoded) {
			t.Fatalf("%d files: the patch makes something else: %v", c.n, err)
		}
		z, _ := Compress(nil, p)
		changed := c.n / c.changed
		t.Logf("%d files, %d changed: %d bytes, alone %d", c.n, changed, len(z), len(encoded))
		if most := 200 + 60*changed + (c.n-changed)/2; len(z) > most {
			t.Errorf("%d files, %d changed: %d bytes, want at most %d", c.n, changed, len(z), most)
		}
	}
}

func TestTOCPatchHostile(t *testing.T) {
	base, encoded := layerTOC(t, 1, 100, 3), layerTOC(t, 2, 100, 3)
	p, err := PatchTOC(t.Context(), base, encoded)
	if err != nil {
		t.Fatal(err)
	}
	huge := binary.AppendUvarint(nil, MaxTOCFrame+1)
	for name, b := range map[string][]byte{
		"empty": nil, "too large": huge, "size only": p[:2], "longer": append(bytes.Clone(p), 0),
		"other": encoded, "no segment": binary.AppendUvarint(nil, MaxTOCFrame),
	} {
		if _, err := ApplyTOCPatch(base, b); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	for i := range p {
		if _, err := ApplyTOCPatch(base, p[:i]); !errors.Is(err, toc.ErrInvalid) {
			t.Fatalf("cut after %d bytes: got %v, want ErrInvalid", i, err)
		}
		if _, err := ApplyTOCPatch(base[:len(base)/2], p[:i]); !errors.Is(err, toc.ErrInvalid) {
			t.Fatalf("another base: got %v, want ErrInvalid", err)
		}
	}
}

func FuzzApplyTOCPatch(f *testing.F) {
	base, encoded := layerTOC(f, 1, 50, 3), layerTOC(f, 2, 50, 3)
	p, err := PatchTOC(f.Context(), base, encoded)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		if _, err := ApplyTOCPatch(base, p); err != nil && !errors.Is(err, toc.ErrInvalid) {
			t.Fatal(err)
		}
	})
}

func BenchmarkTOCPatch(b *testing.B) {
	base, encoded := layerTOC(b, 1, 27_000, 300), layerTOC(b, 2, 27_000, 300)
	p, err := PatchTOC(b.Context(), base, encoded)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("make", func(b *testing.B) {
		b.SetBytes(int64(len(encoded)))
		for b.Loop() {
			if _, err := PatchTOC(b.Context(), base, encoded); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("apply", func(b *testing.B) {
		b.SetBytes(int64(len(encoded)))
		for b.Loop() {
			if _, err := ApplyTOCPatch(base, p); err != nil {
				b.Fatal(err)
			}
		}
	})
}
