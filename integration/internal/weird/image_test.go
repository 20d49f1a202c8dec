package weird

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/content/oci"
)

// Every layout must be one that other tools accept.
func TestImagesAreValidLayouts(t *testing.T) {
	for _, im := range Images() {
		t.Run(im.Name, func(t *testing.T) {
			dir := t.TempDir()
			if err := im.Write(dir); err != nil {
				t.Fatal(err)
			}
			src, err := oci.NewFromFS(t.Context(), os.DirFS(dir))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := oras.Copy(t.Context(), src, Tag, memory.New(), Tag, oras.DefaultCopyOptions); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestSparseIsReadBack(t *testing.T) {
	var b bytes.Buffer
	l := &layer{tw: tar.NewWriter(&b), raw: &b}
	l.file("before", "x")
	l.sparse("s", 3000, map[int64]string{10: "abc", 2000: "def"}, 10, 2000)
	l.file("after", "y")
	if l.err != nil {
		t.Fatal(l.err)
	}
	if err := l.tw.Close(); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 3000)
	copy(want[10:], "abc")
	copy(want[2000:], "def")
	r := tar.NewReader(&b)
	for _, name := range []string{"before", "s", "after"} {
		h, err := r.Next()
		if err != nil || h.Name != name {
			t.Fatalf("got %v, %v, want entry %s", h, err, name)
		}
		got, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if name == "s" && !bytes.Equal(got, want) {
			t.Error("the sparse file is not what was written")
		}
	}
}

// The same call gives the same bytes, or caches in front of the tests lie.
func TestWriteIsReproducible(t *testing.T) {
	im := Images()[1]
	var idx [2][]byte
	for i := range idx {
		dir := t.TempDir()
		if err := im.Write(dir); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "index.json"))
		if err != nil {
			t.Fatal(err)
		}
		idx[i] = b
	}
	if !bytes.Equal(idx[0], idx[1]) {
		t.Errorf("got %s, then %s", idx[0], idx[1])
	}
}
