package trace

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func dig(n byte) toc.Digest { return toc.Digest{31: n, 0: 1} }

func everything(size int64) func(toc.Digest) (uint32, int64, bool) {
	return func(d toc.Digest) (uint32, int64, bool) { return uint32(d[31]), size, true }
}

func TestRecorder(t *testing.T) {
	zero := time.Now()
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	var r Recorder
	r.Add(dig(1), 0, 0, at(0), 0)             // opened, read later
	r.Add(dig(2), 0, 100, at(1), time.Second) // waited
	r.Add(dig(1), 8<<20, 4096, at(5), 0)      // in the middle
	r.Add(dig(1), 0, 4096, at(6), 0)          // the beginning
	r.Add(dig(1), 4096, 4096, at(7), 0)       // goes on
	r.Add(dig(3), 0, 0, at(8), 0)             // opened only
	r.Add(dig(4), 10, 1<<30, at(9), 0)        // beyond the end
	r.Add(dig(9), 0, 1, at(10), 0)            // of another image
	r.Add(dig(1), -1, 1, at(11), 0)           // nonsense
	r.Add(dig(1), 1<<62, 1<<62, at(12), 0)    // nonsense
	got := r.Stop(func(d toc.Digest) (uint32, int64, bool) { return uint32(d[31]), 16 << 20, d != dig(9) })
	want := []Object{
		{Index: 2, After: 1e6, Wait: time.Second, Ranges: []Range{{0, 100, 1e6}}},
		{Index: 1, After: 5e6, Ranges: []Range{{0, 8192, 6e6}, {8 << 20, 4096, 5e6}}},
		{Index: 3, After: 8e6},
		{Index: 4, After: 9e6, Ranges: []Range{{10, 16<<20 - 10, 9e6}}},
	}
	for i := range want {
		want[i].Digest, want[i].Size = dig(byte(want[i].Index)), 16<<20
	}
	if fmt.Sprint(got.Objects) != fmt.Sprint(want) {
		t.Errorf("got %+v\nwant %+v", got.Objects, want)
	}
	if n, bytes := got.Read(); n != 3 || bytes != 100+8192+4096+16<<20-10 {
		t.Errorf("%d objects and %d bytes were read", n, bytes)
	}
	if got.Wait() != time.Second {
		t.Errorf("waited %v", got.Wait())
	}
	r.Add(dig(1), 0, 1, at(20), 0)
	if r.Stop(everything(1)) != nil {
		t.Error("a second Stop gives a second trace")
	}
}

// TestRecorderIsBounded: whatever a container does, its trace stays small, and
// covers what it read.
func TestRecorderIsBounded(t *testing.T) {
	var r Recorder
	for i := range int64(1000) {
		r.Add(dig(1), (i*7919%1000)<<20, 10, time.Now(), 0)
	}
	for i := range maxObjects + 10 {
		r.Add(toc.Digest{2, byte(i >> 16), byte(i >> 8), byte(i)}, 0, 1, time.Now(), 0)
	}
	got := r.Stop(everything(1 << 40))
	if len(got.Objects) != maxObjects || got.Left != 11 {
		t.Errorf("%d objects, %d left out", len(got.Objects), got.Left)
	}
	for _, o := range got.Objects {
		if o.Digest != dig(1) {
			continue
		}
		last := o.Ranges[len(o.Ranges)-1]
		if len(o.Ranges) > maxRanges || o.Ranges[0].Off != 0 || last.Off+last.N != 999<<20+10 {
			t.Errorf("%d ranges, from %d to %d", len(o.Ranges), o.Ranges[0].Off, last.Off+last.N)
		}
	}
}

func FuzzInsert(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 200, 1, 0, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		var ranges []Range
		for ; len(b) >= 2; b = b[2:] {
			x := Range{Off: int64(b[0]) << 17, N: int64(b[1])<<9 + 1}
			ranges = insert(ranges, x)
			covered := false
			for i, r := range ranges {
				covered = covered || r.Off <= x.Off && x.Off+x.N <= r.Off+r.N
				if i > 0 && ranges[i-1].Off+ranges[i-1].N+gap >= r.Off {
					t.Fatalf("ranges %v touch", ranges)
				}
			}
			if !covered || len(ranges) > maxRanges {
				t.Fatalf("%v is not in the %d ranges %v", x, len(ranges), ranges)
			}
		}
	})
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for i := range 3 {
		if err := s.Put(&Trace{Name: fmt.Sprint("r/", i), Started: start.Add(time.Duration(i))}); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range map[string]string{"0123456789abcdef.json": "{", ".tmp-1": "x", "other.txt": "mine"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	all, err := s.All()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tr := range all {
		names = append(names, tr.Name)
	}
	if fmt.Sprint(names) != "[r/0 r/1 r/2]" {
		t.Errorf("got %v", names)
	}
	if err := s.Delete(all[0].ID, all[1].ID, "../other.txt", "0000000000000000"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(all[0].ID); !errdefs.IsNotFound(err) {
		t.Errorf("a deleted trace gives %v", err)
	}
	if _, err := s.Get("../other"); !errdefs.IsNotFound(err) {
		t.Errorf("a path gives %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left are %v, %v, want one trace and the file of another", left, err)
	}
}

func TestStoreIsBounded(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for range maxTraces + 5 {
		if err := s.Put(&Trace{}); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := s.IDs(); err != nil || len(ids) != maxTraces {
		t.Errorf("%d traces are kept (%v), want %d", len(ids), err, maxTraces)
	}
}

func BenchmarkRecorder(b *testing.B) {
	var r Recorder
	now := time.Now()
	for i := range b.N {
		r.Add(toc.Digest{byte(i), byte(i >> 8)}, int64(i%16)<<20, 4096, now, 0)
	}
}
