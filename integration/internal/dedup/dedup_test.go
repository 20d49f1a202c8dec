package dedup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
)

// entry of a layer: a regular file, or with link a hard link.
type entry struct{ name, content, link string }

// image writes a layout with one layer per list.
func image(t *testing.T, layers ...[]entry) (*Image, []int64) {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) ocispec.Descriptor {
		d := digest.FromBytes(b)
		if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", d.Encoded()), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return ocispec.Descriptor{Digest: d, Size: int64(len(b))}
	}
	var m ocispec.Manifest
	var sizes []int64
	for _, l := range layers {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		for _, e := range l {
			h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Size: int64(len(e.content)), Mode: 0o644}
			if e.link != "" {
				h.Typeflag, h.Linkname = tar.TypeLink, e.link
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(e.content)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		d := put(b.Bytes())
		m.Layers, sizes = append(m.Layers, d), append(sizes, d.Size)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	im, err := Load(corpus.Image{Layout: dir, Manifest: put(b).Digest})
	if err != nil {
		t.Fatal(err)
	}
	return im, sizes
}

func TestImage(t *testing.T) {
	base := []entry{{name: "a", content: "one"}, {name: "dir/b", content: "two"}, {name: "dir/c", content: "three"}, {name: "d", link: "a"}}
	tests := []struct {
		name     string
		layers   [][]entry
		files    int
		contents []string
	}{
		{"hard links share a content", [][]entry{base}, 4, []string{"one", "two", "three"}},
		{"a whiteout removes one file", [][]entry{base, {{name: "dir/.wh.b"}}}, 3, []string{"one", "three"}},
		{"a whiteout removes a directory", [][]entry{base, {{name: ".wh.dir"}}}, 2, []string{"one"}},
		{
			"an opaque directory hides what is below, and not what is beside it",
			[][]entry{base, {{name: "dir/e", content: "four"}, {name: "dir/.wh..wh..opq"}}},
			3,
			[]string{"one", "four"},
		},
		{"a file is replaced", [][]entry{base, {{name: "dir/b", content: "five"}}}, 4, []string{"one", "five", "three"}},
		{"nothing is sent for empty files", [][]entry{{{name: "empty"}}}, 1, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			im, _ := image(t, tt.layers...)
			if im.Files != tt.files {
				t.Errorf("got %d files, want %d", im.Files, tt.files)
			}
			if len(im.contents) != len(tt.contents) {
				t.Errorf("got %d contents, want %d", len(im.contents), len(tt.contents))
			}
			for _, c := range tt.contents {
				if _, ok := im.contents[sha256.Sum256([]byte(c))]; !ok {
					t.Errorf("content %q is missing", c)
				}
			}
		})
	}
}

func TestBytesOfAnUpdate(t *testing.T) {
	base := []entry{{name: "a", content: "one"}, {name: "b", content: "two"}}
	old, _ := image(t, base, []entry{{name: "c", content: "three"}})
	now, sizes := image(t, base, []entry{{name: "c", content: "four"}, {name: "moved", content: "two"}})
	if got := now.Layers(old); got != sizes[1] {
		t.Errorf("got %d bytes of layers, want %d: those of the one that changed", got, sizes[1])
	}
	if got, want := now.Layers(nil), sizes[0]+sizes[1]; got != want {
		t.Errorf("got %d bytes of layers of a fresh image, want %d", got, want)
	}
	got, err := now.Gzip(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	if want := gzipped(t, "four"); got != want {
		t.Errorf("got %d bytes, want %d: those of the one new content", got, want)
	}
	fresh, err := now.Gzip(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := gzipped(t, "one") + gzipped(t, "two") + gzipped(t, "four"); fresh != want {
		t.Errorf("got %d bytes of a fresh image, want %d: those of each content once", fresh, want)
	}
}

func gzipped(t *testing.T, s string) int64 {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return int64(b.Len())
}
