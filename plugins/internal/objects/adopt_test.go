package objects_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/starlight-delta/starlight/plugins/internal/objects"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// A new process goes on with the pieces that are right, and with no other byte of what
// it finds: what a crash tore, what is another file, what nobody wants.
func TestAdopt(t *testing.T) {
	data := make([]byte, 4*toc.PieceSize+100)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	clear(data[2*toc.PieceSize : 3*toc.PieceSize]) // which writers leave out
	o := describe(data)
	for name, tc := range map[string]struct {
		stored []int
		hurt   func(f *os.File) error
		want   byte
	}{
		"all that there is":  {[]int{0, 2, 4}, func(*os.File) error { return nil }, 0b10101},
		"nothing":            {nil, nil, 0},
		"torn piece":         {[]int{0, 1}, func(f *os.File) error { _, err := f.WriteAt([]byte("torn"), 5); return err }, 0b110},
		"garbage for a hole": {[]int{0}, func(f *os.File) error { _, err := f.WriteAt([]byte("x"), 2*toc.PieceSize+9); return err }, 0b1},
		"cut off":            {[]int{0, 1}, func(f *os.File) error { return f.Truncate(toc.PieceSize) }, 0},
		"whole":              {[]int{0, 1, 3, 4}, func(f *os.File) error { return nil }, 0b01111},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			write := func(s *objects.Store, pieces ...int) {
				t.Helper()
				w, err := s.Writer(o)
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				for _, i := range pieces {
					if err := w.Piece(i, data[i*toc.PieceSize:min((i+1)*toc.PieceSize, len(data))]); err != nil {
						t.Fatal(err)
					}
				}
			}
			write(s, tc.stored...)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if tc.hurt != nil {
				f, err := os.OpenFile(filepath.Join(root, "partial", o.Digest.Hex()), os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				if err := tc.hurt(f); err != nil {
					t.Fatal(err)
				}
				_ = f.Close()
			}
			s = open(t, root)
			if err := s.KeepPartial(func(d toc.Digest) bool { return d == o.Digest }); err != nil {
				t.Fatal(err)
			}
			if err := s.Adopt(o); err != nil {
				t.Fatal(err)
			}
			var got byte
			for _, p := range s.Partials(10) {
				got = p.Pieces[0]
			}
			// A piece of zeros is right wherever a file has a hole.
			if want := tc.want; got != want && got != want|0b100 {
				t.Errorf("adopted pieces %b, want %b", got, want)
			}
			write(s, 0, 1, 2, 3, 4)
			b, err := os.ReadFile(filepath.Join(s.Dir(), o.Digest.Path()))
			if err != nil || !bytes.Equal(b, data) {
				t.Errorf("the object is wrong in the end: %v", err)
			}
		})
	}
}

func TestKeepPartial(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	want, other := toc.Digest{1}, toc.Digest{2}
	for _, name := range []string{want.Hex(), other.Hex(), other.Hex() + ".a", "junk"} {
		if err := os.WriteFile(filepath.Join(s.PartialDir(), name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.KeepPartial(func(d toc.Digest) bool { return d == want }); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(s.PartialDir())
	if err != nil || len(left) != 1 || left[0].Name() != want.Hex() {
		t.Errorf("left %v, %v", left, err)
	}
}
