package toc

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func digestOf(s string) Digest { return sha256.Sum256([]byte(s)) }

func piecesOf(seed string, size int64) []Digest {
	var out []Digest
	for i := range pieceDigests(size) {
		out = append(out, digestOf(fmt.Sprint(seed, i)))
	}
	return out
}

func mustAdd(t testing.TB, b *Builder, e Entry, pieces ...Digest) {
	t.Helper()
	if _, _, err := b.Add(e, pieces); err != nil {
		t.Fatal(err)
	}
}

// allTOC has an entry of every kind and every odd value.
func allTOC(t testing.TB) *TOC {
	b := NewBuilder()
	big := digestOf("big")
	caps := []Xattr{{"security.capability", "\x01\x00\x00\x02\x00\x04"}, {"user.x", ""}}
	mustAdd(t, b, Entry{Name: "", Type: TypeDir, Mode: 0o755})
	mustAdd(t, b, Entry{Name: "bin", Type: TypeDir, Mode: 0o755, MtimeSec: -1, MtimeNsec: 999_999_999})
	mustAdd(t, b, Entry{Name: "bin/ping", Mode: 0o4755, UID: math.MaxUint32, GID: 12, MtimeSec: math.MaxInt64,
		Xattrs: caps, Object: digestOf("ping"), Size: 4})
	mustAdd(t, b, Entry{Name: "bin/ping6", Type: TypeLink, Link: "bin/ping", MtimeSec: math.MinInt64})
	mustAdd(t, b, Entry{Name: "bin/pong", Mode: 0o755, Xattrs: caps[:1], Object: digestOf("ping"), Size: 4})
	mustAdd(t, b, Entry{Name: "bin/sh", Type: TypeSymlink, Mode: 0o777, Link: "../usr//bin/\xff"})
	mustAdd(t, b, Entry{Name: "big", Mode: 0o600, Object: big, Size: 3*PieceSize + 1}, piecesOf("big", 3*PieceSize+1)...)
	mustAdd(t, b, Entry{Name: "exact", Object: digestOf("exact"), Size: PieceSize})
	mustAdd(t, b, Entry{Name: "big", Object: big, Size: 3*PieceSize + 1}, piecesOf("big", 3*PieceSize+1)...)
	mustAdd(t, b, Entry{Name: "dev/null", Type: TypeChar, Mode: 0o666, DevMajor: 1, DevMinor: 3})
	mustAdd(t, b, Entry{Name: "dev/sda", Type: TypeBlock, DevMajor: math.MaxUint32, DevMinor: math.MaxUint32})
	mustAdd(t, b, Entry{Name: "run/fifo", Type: TypeFifo})
	mustAdd(t, b, Entry{Name: "a/.wh.b"})
	mustAdd(t, b, Entry{Name: "odd/new\nline \xff\xfe\x01 ...", Mode: 0o7777})
	mustAdd(t, b, Entry{Name: "odd/" + strings.Repeat("n", MaxComponent)})
	return b.TOC(digestOf("layer"))
}

// randomTOC is a plausible layer of n entries.
func randomTOC(t testing.TB, seed uint64, n int) *TOC {
	r := rand.New(rand.NewPCG(seed, 1))
	b := NewBuilder()
	dir := "usr"
	var file string
	for i := range n {
		e := Entry{UID: r.Uint32N(3), Mode: 0o644, MtimeSec: 1_700_000_000 + r.Int64N(1000)}
		switch k := r.IntN(20); {
		case k == 0 && strings.Count(dir, "/") < 8:
			dir += fmt.Sprintf("/dir%d", i)
			e.Name, e.Type, e.Mode = dir, TypeDir, 0o755
		case k == 1:
			e.Name, e.Type, e.Mode = dir, TypeDir, 0o755
			dir = "usr/share"
		case k == 2:
			e.Name, e.Type, e.Link = fmt.Sprintf("%s/link%d", dir, i), TypeSymlink, "../x"
		case k == 3 && file != "":
			e.Name, e.Type, e.Link = fmt.Sprintf("%s/hard%d", dir, i), TypeLink, file
		case k == 4:
			e.Name = fmt.Sprintf("%s/empty%d", dir, i)
		default:
			e.Name = fmt.Sprintf("%s/file%d.js", dir, i)
			e.Size = 1 + r.Int64N(20_000)
			if r.IntN(100) == 0 {
				e.Size = PieceSize + r.Int64N(5*PieceSize)
			}
			key := fmt.Sprint(e.Size, r.IntN(3))
			e.Object = digestOf(key)
			if r.IntN(50) == 0 {
				e.Xattrs = []Xattr{{"user.k", fmt.Sprint(r.IntN(4))}}
			}
			file = e.Name
			mustAdd(t, b, e, piecesOf(key, e.Size)...)
			continue
		}
		mustAdd(t, b, e)
	}
	return b.TOC(digestOf(fmt.Sprint("layer", seed)))
}

func TestCodecRoundTrip(t *testing.T) {
	tocs := map[string]*TOC{"empty": {DiffID: digestOf("x")}, "all": allTOC(t)}
	for seed := range uint64(30) {
		tocs[fmt.Sprint("random", seed)] = randomTOC(t, seed, int(seed)*37)
	}
	for name, want := range tocs {
		enc := want.Encode()
		got, err := Decode(enc)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		requireEqual(t, name, got, want)
		if !bytes.Equal(got.Encode(), enc) {
			t.Errorf("%s: encoding what was decoded gives other bytes", name)
		}
	}
}

func requireEqual(t *testing.T, name string, got, want *TOC) {
	t.Helper()
	norm := func(v *TOC) *TOC {
		c := *v
		if len(c.Entries) == 0 {
			c.Entries = nil
		}
		if len(c.Objects) == 0 {
			c.Objects = nil
		}
		return &c
	}
	if d := cmp.Diff(norm(want), norm(got)); d != "" {
		t.Fatalf("%s: decoded TOC differs (-want +got):\n%s", name, d)
	}
}

func TestEncodeGolden(t *testing.T) {
	for name, v := range map[string]*TOC{"all": allTOC(t), "random": randomTOC(t, 7, 50), "empty": {}} {
		file := filepath.Join("testdata", name+".toc")
		got := v.Encode()
		if *update {
			writeFile(t, file, got)
			seed := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", got)
			writeFile(t, filepath.Join("testdata", "fuzz", "FuzzDecode", name), []byte(seed))
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the encoding has changed; stored TOCs and their digests depend on it, so it needs a new version", file)
		}
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

func TestDecodeRefuses(t *testing.T) {
	big := Object{Digest: digestOf("big"), Size: 2 * PieceSize, Pieces: piecesOf("big", 2*PieceSize)}
	file := Entry{Name: "f", Object: digestOf("f"), Size: 1}
	object := Object{Digest: digestOf("f"), Size: 1}
	named := func(name string) *TOC { return &TOC{Entries: []Entry{{Name: name, Type: TypeDir}}} }
	entry := func(e Entry) *TOC { return &TOC{Entries: []Entry{e}} }
	tests := map[string]*TOC{
		"absolute name":       named("/etc"),
		"dot dot":             named("a/../b"),
		"only dot dot":        named(".."),
		"dot":                 named("./a"),
		"trailing slash":      named("a/"),
		"double slash":        named("a//b"),
		"NUL":                 named("a\x00b"),
		"long component":      named(strings.Repeat("n", MaxComponent+1)),
		"long name":           named(strings.Repeat("n/", MaxName/2) + "n"),
		"root is a file":      entry(Entry{}),
		"type":                entry(Entry{Name: "x", Type: TypeFifo + 1}),
		"mode":                entry(Entry{Name: "x", Mode: 0o10000}),
		"nanoseconds":         entry(Entry{Name: "x", MtimeNsec: 1e9}),
		"empty symlink":       entry(Entry{Name: "x", Type: TypeSymlink}),
		"NUL in symlink":      entry(Entry{Name: "x", Type: TypeSymlink, Link: "\x00"}),
		"long symlink":        entry(Entry{Name: "x", Type: TypeSymlink, Link: strings.Repeat("n", MaxName+1)}),
		"unclean hard link":   entry(Entry{Name: "x", Type: TypeLink, Link: "../x"}),
		"hard link to root":   entry(Entry{Name: "x", Type: TypeLink}),
		"xattrs not sorted":   entry(Entry{Name: "x", Xattrs: []Xattr{{"user.b", ""}, {"user.a", ""}}}),
		"xattr twice":         entry(Entry{Name: "x", Xattrs: []Xattr{{"user.b", ""}, {"user.b", ""}}}),
		"xattr without name":  entry(Entry{Name: "x", Xattrs: []Xattr{{"", "x"}}}),
		"long xattr name":     entry(Entry{Name: "x", Xattrs: []Xattr{{strings.Repeat("n", MaxXattrName+1), "x"}}}),
		"long xattr value":    entry(Entry{Name: "x", Xattrs: []Xattr{{"user.a", strings.Repeat("n", MaxXattrValue+1)}}}),
		"unknown object":      entry(file),
		"unused object":       {Objects: []Object{object}},
		"object without size": {Entries: []Entry{file}, Objects: []Object{{Digest: file.Object}}},
		"object twice":        {Entries: []Entry{file, file}, Objects: []Object{object, object}},
		"object order": {
			Entries: []Entry{{Name: "b", Object: big.Digest, Size: big.Size}, file},
			Objects: []Object{object, big},
		},
		"object without digest": {Entries: []Entry{{Name: "f", Size: 1}}, Objects: []Object{{Size: 1}}},
		"huge object":           {Entries: []Entry{file}, Objects: []Object{{Digest: file.Object, Size: MaxObjectSize + 1}}},
		"pieces missing": {
			Entries: []Entry{{Name: "b", Object: big.Digest, Size: big.Size}},
			Objects: []Object{{Digest: big.Digest, Size: big.Size, Pieces: big.Pieces[:1]}},
		},
		"pieces left over": {
			Entries: []Entry{file},
			Objects: []Object{{Digest: file.Object, Size: 1, Pieces: big.Pieces}},
		},
	}
	for name, v := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode(v.Encode()); !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		})
	}
}

func TestDecodeRefusesDamage(t *testing.T) {
	good := allTOC(t).Encode()
	for i := range good {
		if _, err := Decode(good[:i]); !errors.Is(err, ErrInvalid) {
			t.Fatalf("cut at %d: got %v, want ErrInvalid", i, err)
		}
	}
	for _, bad := range [][]byte{
		append(bytes.Clone(good), 0),
		append([]byte("SLTC\x01"), good[5:]...),
		append([]byte("SLTC\x02\x01"), good[6:]...),
	} {
		if _, err := Decode(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
	}
}

// raw puts together an encoding from its columns.
func raw(entries, objects uint64, cols map[int][]byte) []byte {
	b := append([]byte(magic), make([]byte, 32)...)
	b = binary.AppendUvarint(b, entries)
	b = binary.AppendUvarint(b, objects)
	for c := range columns {
		b = binary.AppendUvarint(b, uint64(len(cols[c])))
		b = append(b, cols[c]...)
	}
	return b
}

func TestDecodeAllocatesInProportion(t *testing.T) {
	// Each entry repeats a name of 4096 bytes by saying "4096 shared, 0 more".
	const n = 100_000
	zeros := make([]byte, n)
	bomb := map[int][]byte{
		colTypes: bytes.Repeat([]byte{byte(TypeDir)}, n), colOwners: {0, 0, 0}, colOwner: zeros, colSeconds: zeros,
		colNanos: zeros, colXattr: zeros, colNames: []byte(strings.Repeat("n/", MaxName/2)),
		colPrefix: append([]byte{0}, bytes.Repeat(binary.AppendUvarint(nil, MaxName), n-1)...),
		colSuffix: append(binary.AppendUvarint(nil, MaxName), zeros[1:]...),
	}
	tests := map[string][]byte{
		"names":           raw(n, 0, bomb),
		"entries":         raw(MaxEntries, 0, nil),
		"objects":         raw(0, MaxEntries, nil),
		"pieces":          raw(0, 1, map[int][]byte{colDigests: bytes.Repeat([]byte{1}, 32), colSizes: binary.AppendUvarint(nil, MaxObjectSize)}),
		"column length":   append(append([]byte(magic), make([]byte, 34)...), binary.AppendUvarint(nil, MaxEncoded)...),
		"xattrs of a set": raw(0, 0, map[int][]byte{colStrings: {0}, colXattrs: bytes.Repeat([]byte{0x80, 0x02}, 1000)}),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Decode(b)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
			if got, most := after.TotalAlloc-before.TotalAlloc, uint64(100*len(b)+1<<20); got > most {
				t.Errorf("%d bytes of input made Decode allocate %d bytes, want at most %d", len(b), got, most)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	// Seeds stand in testdata; TestEncodeGolden writes them.
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("error does not wrap ErrInvalid: %v", err)
			}
			return
		}
		again, err := Decode(got.Encode())
		if err != nil {
			t.Fatalf("what was decoded and encoded is refused: %v", err)
		}
		requireEqual(t, "again", again, got)
		// The Builder accepts what Decode accepts.
		bd := NewBuilder()
		pieces := map[Digest][]Digest{}
		for _, o := range got.Objects {
			pieces[o.Digest] = o.Pieces
		}
		for _, e := range got.Entries {
			mustAdd(t, bd, e, pieces[e.Object]...)
		}
		requireEqual(t, "built", bd.TOC(got.DiffID), got)
	})
}

func BenchmarkEncode(b *testing.B) {
	v := randomTOC(b, 1, 25_000)
	b.ReportAllocs()
	for b.Loop() {
		b.SetBytes(int64(len(v.Encode())))
	}
}

func BenchmarkDecode(b *testing.B) {
	enc := randomTOC(b, 1, 25_000).Encode()
	b.SetBytes(int64(len(enc)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(enc); err != nil {
			b.Fatal(err)
		}
	}
}
