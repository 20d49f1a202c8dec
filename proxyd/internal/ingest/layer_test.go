package ingest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/starlight-delta/starlight/proxyd/internal/pack"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
	"github.com/starlight-delta/starlight/proxyd/wire/toc/fromtar"
)

// member is a member of a tar.
type member struct {
	tar.Header
	content string
}

// archive writes a tar.
func archive(t testing.TB, members ...member) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		h := m.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		h.Size = int64(len(m.content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func file(name, content string) member { return member{tar.Header{Name: name}, content} }

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

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// layer reads a layer and checks that TOC and pack fit together.
func layer(t testing.TB, b []byte) (*toc.TOC, *pack.Reader) {
	t.Helper()
	var buf bytes.Buffer
	c, err := Layer(t.Context(), bytes.NewReader(b), &buf)
	if err != nil {
		t.Fatal(err)
	}
	return c, check(t, c, buf.Bytes())
}

func check(t testing.TB, c *toc.TOC, packed []byte) *pack.Reader {
	t.Helper()
	p, err := pack.NewReader(memory{bytes.NewReader(packed)})
	if err != nil {
		t.Fatal(err)
	}
	if p.Objects() != len(c.Objects) {
		t.Fatalf("%d objects in the pack, %d in the TOC", p.Objects(), len(c.Objects))
	}
	for i, o := range c.Objects {
		if p.Size(i) != o.Size || p.Pieces(i) != o.NumPieces() {
			t.Fatalf("object %d: %d bytes in %d pieces, want %d in %d", i, p.Size(i), p.Pieces(i), o.Size, o.NumPieces())
		}
		h := sha256.New()
		for n := range p.Pieces(i) {
			b, err := p.AppendPiece(nil, i, n)
			if err != nil {
				t.Fatal(err)
			}
			if sha256.Sum256(b) != o.PieceDigest(n) {
				t.Fatalf("object %d: piece %d differs", i, n)
			}
			h.Write(b)
		}
		if toc.Digest(h.Sum(nil)) != o.Digest {
			t.Fatalf("object %d differs", i)
		}
	}
	if _, err := toc.Decode(c.Encode()); err != nil {
		t.Fatalf("the TOC cannot be read again: %v", err)
	}
	return p
}

func TestLayerEntries(t *testing.T) {
	long := strings.Repeat("d/", 100) + strings.Repeat("n", 255)
	mtime := time.Unix(1_700_000_000, 123_456_789)
	old := time.Unix(-5, 0)
	hello := toc.Digest(sha256.Sum256([]byte("hello")))
	b := archive(t,
		member{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, ""},
		member{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, ""},
		member{tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o1777}, ""},
		member{tar.Header{Name: "/etc/../../etc/./hello", Mode: 0o4755, Uid: 1 << 22, Gid: 1 << 23, ModTime: mtime, Format: tar.FormatPAX}, "hello"},
		file("empty", ""),
		file("same", "hello"),
		member{tar.Header{Name: "link", Typeflag: tar.TypeLink, Linkname: "./../etc/hello"}, ""},
		member{tar.Header{Name: "symlink", Typeflag: tar.TypeSymlink, Linkname: "../etc//./hello", Mode: 0o777}, ""},
		member{tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, ModTime: old, Format: tar.FormatPAX}, ""},
		member{tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 8, Devminor: 1 << 18, Format: tar.FormatGNU}, ""},
		member{tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, ""},
		member{tar.Header{Name: "etc/.wh.gone", Typeflag: tar.TypeReg}, "ignored"},
		member{tar.Header{Name: "etc/.wh.dir/", Typeflag: tar.TypeDir}, ""},
		member{tar.Header{Name: "etc/.wh..wh..opq", Typeflag: tar.TypeReg}, ""},
		member{tar.Header{Name: long, Format: tar.FormatPAX}, "x"},
		member{tar.Header{Name: "gnu" + long, Format: tar.FormatGNU}, "x"},
		file("odd \n\xff name", "x"),
		member{tar.Header{Name: "xattrs", PAXRecords: map[string]string{
			"SCHILY.xattr.user.b": "2\x00\xff", "SCHILY.xattr.security.capability": "cap", "LIBARCHIVE.xattr.user.c": "eA", "comment": "x",
		}}, "hello"},
	)
	b = append(b, "trailing garbage"...)
	c, p := layer(t, b)
	x := toc.Digest(sha256.Sum256([]byte("x")))
	want := []toc.Entry{
		{Name: "", Type: toc.TypeDir, Mode: 0o755},
		{Name: "etc", Type: toc.TypeDir, Mode: 0o1777},
		{Name: "etc/hello", Mode: 0o4755, UID: 1 << 22, GID: 1 << 23, MtimeSec: mtime.Unix(), MtimeNsec: 123_456_789, Object: hello, Size: 5},
		{Name: "empty"},
		{Name: "same", Object: hello, Size: 5},
		{Name: "link", Type: toc.TypeLink, Link: "etc/hello"},
		{Name: "symlink", Type: toc.TypeSymlink, Mode: 0o777, Link: "../etc//./hello"},
		{Name: "null", Type: toc.TypeChar, DevMajor: 1, DevMinor: 3, MtimeSec: -5},
		{Name: "disk", Type: toc.TypeBlock, DevMajor: 8, DevMinor: 1 << 18},
		{Name: "fifo", Type: toc.TypeFifo, Mode: 0o600},
		{Name: "etc/.wh.gone"},
		{Name: "etc/.wh.dir"},
		{Name: "etc/.wh..wh..opq"},
		{Name: long, Object: x, Size: 1},
		{Name: "gnu" + long, Object: x, Size: 1},
		{Name: "odd \n\xff name", Object: x, Size: 1},
		{Name: "xattrs", Object: hello, Size: 5, Xattrs: []toc.Xattr{{Name: "security.capability", Value: "cap"}, {Name: "user.b", Value: "2\x00\xff"}}},
	}
	if d := cmp.Diff(want, c.Entries); d != "" {
		t.Errorf("entries (-want +got)\n%s", d)
	}
	if c.DiffID != sha256.Sum256(b) {
		t.Error("the diff ID is not that of all bytes")
	}
	if p.Objects() != 2 {
		t.Errorf("%d objects, want 2", p.Objects())
	}
}

func random(seed byte, n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return string(b)
}

func TestLayerSizes(t *testing.T) {
	var members []member
	for i, n := range []int{1, 47, 48, 4096, 256 << 10, toc.PieceSize - 1, toc.PieceSize, toc.PieceSize + 1, 3*toc.PieceSize + 5} {
		members = append(members, file(fmt.Sprint("r", i), random(byte(i), n)), file(fmt.Sprint("z", i), strings.Repeat("z", n)))
	}
	members = append(members, file("again", random(8, 3*toc.PieceSize+5))) // known, piece by piece
	for i := range 3000 {
		members = append(members, file(fmt.Sprint("small/", i), random(byte(i), i)))
	}
	plain := archive(t, members...)
	for name, b := range map[string][]byte{
		"plain": plain, "gzip": gzipped(t, plain), "zstd": zstded(t, plain),
		"two gzip members": append(gzipped(t, plain[:1000]), gzipped(t, plain[1000:])...),
		"skippable zstd":   append([]byte{0x5a, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'}, zstded(t, plain)...),
	} {
		t.Run(name, func(t *testing.T) {
			c, p := layer(t, b)
			if c.DiffID != sha256.Sum256(plain) {
				t.Error("wrong diff ID")
			}
			if len(c.Entries) != len(members) {
				t.Errorf("%d entries, want %d", len(c.Entries), len(members))
			}
			if d, err := fromtar.DiffID(t.Context(), bytes.NewReader(b)); err != nil || d != c.DiffID {
				t.Errorf("DiffID = %s, %v", d, err)
			}
			_ = p
		})
	}
}

func TestLayerEmpty(t *testing.T) {
	for name, b := range map[string][]byte{"no bytes": nil, "gzip of no bytes": gzipped(t, nil), "no members": archive(t), "one block": make([]byte, 512)} {
		if c, _ := layer(t, b); len(c.Entries) != 0 {
			t.Errorf("%s: %d entries", name, len(c.Entries))
		}
	}
}

// TestLayerSparse reads what GNU tar makes of a file with holes.
func TestLayerSparse(t *testing.T) {
	tarBin, err := exec.LookPath("tar")
	if err != nil {
		t.Fatal("no tar; apt-get install tar")
	}
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	const size = 20 << 20
	if _, err := f.WriteAt([]byte("end"), size-3); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := exec.CommandContext(t.Context(), tarBin, "-C", dir, "--format=pax", "--sparse", "-c", "sparse").Output()
	if err != nil {
		t.Fatal(err)
	}
	c, _ := layer(t, b)
	if len(b) > 1<<20 || len(c.Entries) != 1 || c.Entries[0].Name != "sparse" || c.Entries[0].Size != size {
		t.Errorf("tar of %d bytes gives %+v", len(b), c.Entries)
	}
	b, err = exec.CommandContext(t.Context(), tarBin, "-C", dir, "--format=gnu", "--sparse", "-c", "sparse").Output()
	if err != nil {
		t.Fatal(err)
	}
	wantUnsupported(t, "old GNU sparse file, which containerd refuses", b)
}

func wantUnsupported(t *testing.T, name string, b []byte) {
	t.Helper()
	_, err := Layer(t.Context(), bytes.NewReader(b), io.Discard)
	var w *wire.Error
	if !errors.As(err, &w) || w.Code != wire.CodeUnsupported {
		t.Errorf("%s: got %v, want code %q", name, err, wire.CodeUnsupported)
	}
}

// raw writes a header that archive/tar would not write.
func raw(t *testing.T, m member, patch func(block []byte)) []byte {
	t.Helper()
	b := archive(t, m)
	patch(b[:512])
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestLayerRefuses(t *testing.T) {
	good := archive(t, file("a", strings.Repeat("some text ", 10_000)))
	huge := func(n int64) []byte { // archive/tar does not write sparse files
		var records string
		for _, r := range []string{"GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.map=0,0", "GNU.sparse.numblocks=1", fmt.Sprint("GNU.sparse.size=", n)} {
			records += fmt.Sprintf("%d %s\n", len(r)+4, r)
		}
		pax := raw(t, file("PaxHeaders", records), func(b []byte) { b[156] = 'x' })
		return append(pax[:len(pax)-1024], archive(t, file("x", ""))...)
	}
	for name, b := range map[string][]byte{
		"no tar":            []byte(strings.Repeat("no tar ", 200)),
		"truncated tar":     good[:5000],
		"truncated header":  good[:100],
		"truncated gzip":    gzipped(t, good)[:200],
		"truncated zstd":    zstded(t, good)[:60],
		"garbage in gzip":   append([]byte{0x1f, 0x8b, 8}, "garbage"...),
		"after gzip":        append(gzipped(t, good), "garbage"...),
		"xz":                append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, make([]byte, 600)...),
		"unknown type":      raw(t, file("a", ""), func(b []byte) { b[156] = 'Z' }),
		"contiguous file":   raw(t, file("a", ""), func(b []byte) { b[156] = tar.TypeCont }),
		"negative uid":      raw(t, file("a", ""), func(b []byte) { copy(b[108:116], "\xff\xff\xff\xff\xff\xff\xff\xff") }),
		"uid -1":            archive(t, member{tar.Header{Name: "a", Uid: 1<<32 - 1}, ""}),
		"gid of 33 bits":    archive(t, member{tar.Header{Name: "a", Gid: 1 << 32}, ""}),
		"name too long":     archive(t, file(strings.Repeat("d/", 3000)+"x", "")),
		"component":         archive(t, file(strings.Repeat("x", 256), "")),
		"symlink to \"\"":   archive(t, member{tar.Header{Name: "a", Typeflag: tar.TypeSymlink}, ""}),
		"link to the root":  archive(t, member{tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "/"}, ""}),
		"xattr without key": archive(t, member{tar.Header{Name: "a", PAXRecords: map[string]string{"SCHILY.xattr.": "x"}}, ""}),
		"xattr too large":   archive(t, member{tar.Header{Name: "a", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 1<<17)}}, ""}),
		"sparse file":       huge(32<<30 + 1),
		"sparse overflow":   huge(1<<63 - 1),
	} {
		wantUnsupported(t, name, b)
	}
}

// TestLayerErrorOfSource: what goes wrong between the registry and us says
// nothing about the layer.
func TestLayerErrorOfSource(t *testing.T) {
	b := gzipped(t, archive(t, file("a", random(1, 1<<20))))
	broken := errors.New("connection reset")
	for _, n := range []int{0, 1, 1000, len(b) - 1, len(b)} {
		r := io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(broken))
		if _, err := Layer(t.Context(), r, io.Discard); !errors.Is(err, broken) {
			t.Errorf("after %d bytes: got %v", n, err)
		}
	}
}

type failing struct{}

func (failing) Write(p []byte) (int, error) {
	if len(p) > 100 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

func TestLayerErrorOfDestination(t *testing.T) {
	b := archive(t, file("a", random(1, 30<<20)))
	if _, err := Layer(t.Context(), bytes.NewReader(b), failing{}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("got %v", err)
	}
}

func TestLayerCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b := archive(t, file("a", random(1, 30<<20)))
	r := io.TeeReader(bytes.NewReader(b), writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }))
	if _, err := Layer(ctx, r, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func FuzzLayer(f *testing.F) {
	f.Add(archive(f, file("a", "hello"), file("b", "hello"), member{tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "a"}, ""}))
	f.Add(archive(f, member{tar.Header{Name: strings.Repeat("x/", 200), Typeflag: tar.TypeDir, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, ""}))
	f.Add(archive(f, member{tar.Header{Name: strings.Repeat("x", 200), Format: tar.FormatGNU}, "x"}))
	f.Add(gzipped(f, archive(f, file("a", "hello"))))
	f.Add(zstded(f, archive(f, file("a", "hello"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		var buf bytes.Buffer
		c, err := Layer(t.Context(), bytes.NewReader(b), &limited{w: &buf, left: 64 << 20})
		if err == nil {
			check(t, c, buf.Bytes())
		}
	})
}

// limited keeps the fuzzer from writing what sparse files and bombs stand for.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, io.ErrShortWrite
	}
	return l.w.Write(p)
}

// benchLayer is a tar like that of an image: the Go tree of this machine, mostly
// sources and binaries.
func benchLayer(b *testing.B) []byte {
	b.Helper()
	root := filepath.Join(os.Getenv("GOROOT"), "src")
	if os.Getenv("GOROOT") == "" {
		out, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
		if err != nil {
			b.Fatal(err)
		}
		root = strings.TrimSpace(string(out))
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	const limit = 160 << 20
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || buf.Len() > limit {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: path, Typeflag: tar.TypeReg, Size: int64(len(content)), Mode: 0o644}); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}

// BenchmarkLayer measures bytes of the uncompressed tar; -cpu 1 gives those per core.
func BenchmarkLayer(b *testing.B) {
	plain := benchLayer(b)
	for name, enc := range map[string][]byte{"gzip": gzipped(b, plain), "zstd": zstded(b, plain), "plain": plain} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Layer(b.Context(), bytes.NewReader(enc), io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
