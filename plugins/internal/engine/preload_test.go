package engine

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cached tells how many pages of a file are in the page cache.
func cached(t *testing.T, f *os.File) (pages, of int64) {
	t.Helper()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var stat unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &stat, 0); errors.Is(err, unix.ENOSYS) {
		t.Skip("needs Linux 6.5")
	} else if err != nil {
		t.Fatal(err)
	}
	page := int64(os.Getpagesize())
	return int64(stat.Cache), (fi.Size() + page - 1) / page
}

// What a start reads of what the node has is in memory when it starts, although the node
// has not read it since it booted.
func TestUpdateReadsAhead(t *testing.T) {
	p := newFakeProxy(t)
	base := files{"small": random(1, 5000), "large": random(2, 3<<20)}
	img := newTestImage(t, base)
	p.add(testRef, img)
	p.add("registry.test/app:2", newTestImage(t, base, files{"app": "2"}))
	e := openEngine(t, t.TempDir(), p)
	pull(t, e, testRef)
	wait(t, e, testRef) // written to disk, too
	var objects []*os.File
	for d := range img.contents {
		f, err := os.Open(filepath.Join(e.objects.Dir(), d.Path()))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := io.Copy(io.Discard, f); err != nil {
			t.Fatal(err)
		}
		if n, of := cached(t, f); n < of {
			t.Skip("the file system does not tell what is in memory")
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		if n, _ := cached(t, f); n > 0 {
			t.Skip("the file system keeps its pages in memory")
		}
		objects = append(objects, f)
	}
	pull(t, e, "registry.test/app:2")
	for _, f := range objects {
		end := time.Now().Add(20 * time.Second)
		for {
			n, of := cached(t, f)
			if n == of {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%d of %d pages of %s are in memory", n, of, f.Name())
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}
