package fromtar

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// archive writes a tar of files, by name and content in turn.
func archive(t testing.TB, files ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for f := range slices.Chunk(files, 2) {
		if err := w.WriteHeader(&tar.Header{Name: f[0], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func random(seed byte, n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return string(b)
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// kept is Contents in memory.
type kept struct {
	room    []byte
	pieces  [][]byte
	objects [][]byte
	err     error // of Keep
}

func (k *kept) Room(_ context.Context, n int) ([]byte, error) {
	if n > toc.PieceSize {
		return nil, fmt.Errorf("room for %d bytes", n)
	}
	k.room = make([]byte, n)
	return k.room, nil
}

func (k *kept) Keep() (uint32, error) {
	k.pieces = append(k.pieces, k.room)
	return uint32(len(k.pieces) - 1), k.err
}

func (k *kept) Object(size int64, pieces []uint32) {
	var o []byte
	for _, n := range pieces {
		o = append(o, k.pieces[n]...)
	}
	if int64(len(o)) != size {
		o = nil
	}
	k.objects = append(k.objects, o)
}

// Who wants no contents gets the same TOC, however the layer is compressed.
func TestLayer(t *testing.T) {
	large := random(1, 2*toc.PieceSize+5)
	plain := archive(t, "a", "hello", "empty", "", "again", "hello", "large", large, "larger", large[:toc.PieceSize]+large, "piece", large[:toc.PieceSize], "large again", large)
	k := &kept{}
	want, err := Layer(t.Context(), bytes.NewReader(plain), k)
	if err != nil {
		t.Fatal(err)
	}
	if want.DiffID != sha256.Sum256(plain) || len(want.Entries) != 7 || len(want.Objects) != 4 || len(k.objects) != 4 {
		t.Errorf("got %d entries, %d objects and contents of %d", len(want.Entries), len(want.Objects), len(k.objects))
	}
	for i, o := range want.Objects {
		if sha256.Sum256(k.objects[i]) != o.Digest {
			t.Errorf("object %d has other contents", i)
		}
	}
	// hello, three pieces of large, and one that is an object of its own.
	if len(k.pieces) != 5 {
		t.Errorf("%d pieces were kept, want 5", len(k.pieces))
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"plain": plain, "gzip": gzipped(t, plain), "zstd": z.EncodeAll(plain, nil)} {
		got, err := Layer(t.Context(), bytes.NewReader(b), nil)
		if err != nil || !bytes.Equal(got.Encode(), want.Encode()) {
			t.Errorf("%s: another TOC, %v", name, err)
		}
		if d, err := DiffID(t.Context(), bytes.NewReader(b)); err != nil || d != want.DiffID {
			t.Errorf("%s: diff ID %s, %v", name, d, err)
		}
	}
}

func TestLayerRefuses(t *testing.T) {
	good := archive(t, "a", strings.Repeat("some text ", 10_000))
	for name, b := range map[string][]byte{
		"no tar":         []byte(strings.Repeat("no tar ", 200)),
		"truncated tar":  good[:5000],
		"truncated gzip": gzipped(t, good)[:200],
		"after gzip":     append(gzipped(t, good), "garbage"...),
		"name too long":  archive(t, strings.Repeat("d/", 3000)+"x", ""),
	} {
		var l *LayerError
		if _, err := Layer(t.Context(), bytes.NewReader(b), nil); !errors.As(err, &l) {
			t.Errorf("%s: got %v, want a LayerError", name, err)
		}
	}
	full := errors.New("full")
	var l *LayerError
	if _, err := Layer(t.Context(), bytes.NewReader(good), &kept{err: full}); !errors.Is(err, full) || !errors.As(err, &l) {
		t.Errorf("contents that are refused: got %v", err)
	}
	r := io.MultiReader(bytes.NewReader(good[:5000]), iotest.ErrReader(full))
	if _, err := Layer(t.Context(), r, nil); !errors.Is(err, full) || errors.As(err, &l) {
		t.Errorf("source that breaks off: got %v, want no LayerError", err)
	}
}

// faulty is Contents with a bug.
type faulty struct{ nobody }

func (*faulty) Keep() (uint32, error) { panic("a bug") }

// A fault that a layer triggers is an error of that layer's reader, not the end of the process.
func TestPanicIsAnError(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 3, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Layer(t.Context(), &b, &faulty{}); err == nil || !strings.Contains(err.Error(), "a bug") {
		t.Errorf("got %v, want the panic as an error", err)
	}
}
