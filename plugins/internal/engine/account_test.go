package engine

import (
	"math"
	"testing"

	"github.com/opencontainers/go-digest"
)

// usages adds up what all chains take, as containerd asks for it: each without the
// chain below it.
func usages(t *testing.T, e *Engine) (size, inodes int64) {
	t.Helper()
	e.mu.Lock()
	below := map[digest.Digest]digest.Digest{}
	for id, c := range e.chains {
		if below[id] = ""; c.parent != nil {
			below[id] = c.parent.id
		}
	}
	e.mu.Unlock()
	for id, parent := range below {
		s, n, err := e.Usage(t.Context(), id, parent)
		if err != nil {
			t.Fatal(err)
		}
		size, inodes = size+s, inodes+n
	}
	return size, inodes
}

// onDisk is what is there in fact, without directories and state.
func onDisk(t *testing.T, e *Engine) (bytes, files int64) {
	t.Helper()
	all, err := e.DiskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range all {
		switch u.Category {
		case "objects", "toc", "trees":
			bytes, files = bytes+u.Bytes, files+u.Files
		}
	}
	return bytes, files
}

// Whatever images share, by layers or by contents, counts once, while it arrives,
// after a restart, and when some images have gone.
func TestUsagesAddUp(t *testing.T) {
	p := newFakeProxy(t)
	shared := manyFiles(1, 300)
	shared["large"] = random(7, 20<<20)
	more := files{"copy": shared["large"], "other": random(9, 5<<20)}
	refs := []string{testRef, "registry.test/app:2", "registry.test/app:3"}
	for i, img := range []*testImage{
		newTestImage(t, shared, files{"one": "1"}),
		newTestImage(t, shared, more),
		newTestImage(t, files{"base": "x"}, shared, more), // other chains
	} {
		p.add(refs[i], img)
	}
	root := t.TempDir()
	e := openEngine(t, root, p)
	compare := func(when string) {
		t.Helper()
		size, inodes := usages(t, e)
		bytes, files := onDisk(t, e)
		// Directories: 257, of a block each.
		if bytes -= 260 * block; math.Abs(float64(size-bytes)) > 0.02*float64(bytes) || inodes < files {
			t.Errorf("%s: usages are %d bytes in %d files, on the disk are %d in %d", when, size, inodes, bytes, files)
		}
	}
	var pulls []*Pull
	for _, ref := range refs {
		pulls = append(pulls, pull(t, e, ref))
		wait(t, e, ref)
		compare("after " + ref)
	}
	for _, p := range pulls {
		p.Release()
	}
	third, err := e.testPull(t.Context(), refs[2])
	if err != nil {
		t.Fatal(err)
	}
	defer third.Release()
	if err := e.Sweep(t.Context(), nil); err != nil { // all but the third
		t.Fatal(err)
	}
	compare("after two of three went")
	before, _ := usages(t, e)
	closeEngine(t, e, false)
	e = openEngine(t, root, p)
	compare("after a restart")
	// The file system allocates later than we write.
	if after, _ := usages(t, e); math.Abs(float64(after-before)) > 0.01*float64(before) {
		t.Errorf("usages are %d bytes after a restart, %d before", after, before)
	}
}

// A chain whose lower layers are no lazy snapshots of their own counts for them.
func TestUsageOfAChainOnPlainLayers(t *testing.T) {
	p := newFakeProxy(t)
	img := newTestImage(t, files{"a": "1"}, files{"b": "2"})
	p.add(testRef, img)
	e := openEngine(t, t.TempDir(), p)
	pull(t, e, testRef)
	wait(t, e, testRef)
	top := e.images[img.digest()].top()
	whole, _, err := e.Usage(t.Context(), top.id, "")
	if err != nil {
		t.Fatal(err)
	}
	if all, _ := usages(t, e); whole != all {
		t.Errorf("the whole chain takes %d bytes, its parts %d", whole, all)
	}
}
