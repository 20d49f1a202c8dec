package toc

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBuilderNumbersObjects(t *testing.T) {
	b := NewBuilder()
	add := func(e Entry, wantID int, wantFresh bool) {
		t.Helper()
		id, fresh, err := b.Add(e, nil)
		if err != nil || id != wantID || fresh != wantFresh {
			t.Fatalf("Add(%q): got %d, %v, %v, want %d, %v", e.Name, id, fresh, err, wantID, wantFresh)
		}
	}
	add(Entry{Name: "d", Type: TypeDir}, -1, false)
	add(Entry{Name: "a", Object: digestOf("a"), Size: 1}, 0, true)
	add(Entry{Name: "b", Object: digestOf("b"), Size: 1}, 1, true)
	add(Entry{Name: "c", Object: digestOf("a"), Size: 1}, 0, false)
	add(Entry{Name: "empty"}, -1, false)
	if id, ok := b.Object(digestOf("b")); !ok || id != 1 {
		t.Errorf("Object: got %d, %v, want 1, true", id, ok)
	}
	if n := len(b.TOC(Digest{}).Objects); n != 2 {
		t.Errorf("got %d objects, want 2", n)
	}
}

func TestBuilderRefuses(t *testing.T) {
	b := NewBuilder()
	mustAdd(t, b, Entry{Name: "f", Object: digestOf("f"), Size: 1})
	for name, e := range map[string]Entry{
		"name":           {Name: "../f"},
		"xattrs":         {Name: "x", Xattrs: []Xattr{{"b", ""}, {"a", ""}}},
		"two sizes":      {Name: "g", Object: digestOf("f"), Size: 2},
		"no digest":      {Name: "g", Size: 2},
		"no size":        {Name: "g", Object: digestOf("g")},
		"pieces missing": {Name: "g", Object: digestOf("g"), Size: PieceSize + 1},
		"dir with size":  {Name: "g", Type: TypeDir, Size: 1},
		"dev of a file":  {Name: "g", DevMajor: 1},
		"link of a file": {Name: "g", Link: "f"},
	} {
		if _, _, err := b.Add(e, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	if v := b.TOC(Digest{}); len(v.Entries) != 1 || len(v.Objects) != 1 {
		t.Errorf("refused entries left traces: %+v", v)
	}
}

// Many long names must be refused by the Builder before Decode would.
func TestBuilderKeepsNameBudget(t *testing.T) {
	b := NewBuilder()
	dir := strings.TrimSuffix(strings.Repeat("n/", MaxName/2-8), "/")
	refused := false
	for i := range 5000 {
		_, _, err := b.Add(Entry{Name: fmt.Sprintf("%s/%04d", dir, i)}, nil)
		if err != nil {
			refused = true
			break
		}
	}
	if !refused {
		t.Error("5000 names of 4 KiB were accepted")
	}
	v := b.TOC(Digest{})
	if _, err := Decode(v.Encode()); err != nil {
		t.Errorf("what the Builder accepted, Decode refuses: %v", err)
	}
}

func TestObjectList(t *testing.T) {
	obj := func(s string) Object { return Object{Digest: digestOf(s), Size: int64(len(s))} }
	lower := &TOC{Objects: []Object{obj("a"), obj("bb")}}
	upper := &TOC{Objects: []Object{obj("ccc"), obj("a"), obj("dddd")}}
	want := []Object{obj("a"), obj("bb"), obj("ccc"), obj("dddd")}
	if d := cmp.Diff(want, ObjectList(lower, upper)); d != "" {
		t.Errorf("object list differs (-want +got):\n%s", d)
	}
	if got := ObjectList(); len(got) != 0 {
		t.Errorf("got %d objects of no layers", len(got))
	}
}

func TestObjectPieces(t *testing.T) {
	for _, tt := range []struct {
		size   int64
		pieces int
		last   int
	}{{1, 1, 1}, {PieceSize, 1, PieceSize}, {PieceSize + 1, 2, 1}, {3 * PieceSize, 3, PieceSize}} {
		o := Object{Digest: digestOf("o"), Size: tt.size, Pieces: piecesOf("o", tt.size)}
		if n := o.NumPieces(); n != tt.pieces {
			t.Errorf("%d bytes: got %d pieces, want %d", tt.size, n, tt.pieces)
		}
		if n := o.PieceLen(tt.pieces - 1); n != tt.last {
			t.Errorf("%d bytes: last piece has %d bytes, want %d", tt.size, n, tt.last)
		}
		want := o.Digest
		if tt.pieces > 1 {
			want = o.Pieces[0]
		}
		if o.PieceDigest(0) != want {
			t.Errorf("%d bytes: wrong digest of piece 0", tt.size)
		}
	}
}
