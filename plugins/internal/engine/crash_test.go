package engine

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// forgetBoot makes the next Open believe that the machine was started anew.
func forgetBoot(t *testing.T, root string) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(root, "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketNode).Delete([]byte("boot")) })
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// tear makes of a file what a power cut may leave of one that was not synced.
func tear(t *testing.T, path string) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, st.Size()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What came for a complete image after it was marked so, as its tree does not need it,
// is as doubtful after a power cut as what an incomplete image has.
func TestRebootDoubtsWhatACompleteImageHides(t *testing.T) {
	p := newFakeProxy(t)
	one := newTestImage(t, files{"f": "hidden"}, files{"f": "seen"})
	two := newTestImage(t, files{"g": "hidden", "late": "late"})
	p.add(testRef, one)
	p.add("registry.test/app:2", two)
	hidden := one.layers[0].Objects[0].Digest
	late := two.layers[0].Objects[1].Digest
	p.set(func(r *http.Request, o toc.Object, b []byte) ([]byte, error) {
		if o.Digest == late {
			<-r.Context().Done()
			return nil, errCut
		}
		return b, nil
	})
	root := t.TempDir()
	e := openEngine(t, root, p)
	pull(t, e, testRef)
	wait(t, e, testRef)
	pull(t, e, "registry.test/app:2")
	for !e.objects.Has(hidden) {
		time.Sleep(time.Millisecond)
	}
	closeEngine(t, e, false)
	tear(t, filepath.Join(root, "objects", hidden.Path()))
	forgetBoot(t, root)
	p.set(nil)
	e = openEngine(t, root, p)
	wait(t, e, "registry.test/app:2")
	check(t, e, two)
	if kinds := fsckKinds(t, e, false); len(kinds) > 0 {
		t.Errorf("fsck finds %v", kinds)
	}
}

// The tree of an image is durable when the image is marked complete, even if nothing
// of it had to be fetched.
func TestTreeIsThereWhenComplete(t *testing.T) {
	p := newFakeProxy(t)
	p.add(testRef, newTestImage(t, files{"a": "1"}, files{"b": "2"}))
	same := newTestImage(t, files{"b": "2", "a": "1"})
	p.add("registry.test/app:2", same)
	e := openEngine(t, t.TempDir(), p)
	for _, ref := range []string{testRef, "registry.test/app:2"} {
		pull(t, e, ref)
		wait(t, e, ref)
	}
	if _, err := os.Stat(e.treePath(e.images[same.digest()].top().id)); err != nil {
		t.Error(err)
	}
}

// Leftovers of a crash go at the next start, with their mounts.
func TestStartTidiesUp(t *testing.T) {
	p := newFakeProxy(t)
	p.add(testRef, newTestImage(t, files{"a": "1"}))
	root := t.TempDir()
	e := openEngine(t, root, p)
	mountRoot(t, e, pull(t, e, testRef))
	wait(t, e, testRef)
	var left *chain
	for _, c := range e.chains {
		left = c
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e.chains = nil // closed
	// As if a sweep had been cut off after it had dropped the records.
	s, err := openState(filepath.Join(root, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	err = s.db.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketImages) })
	if err == nil {
		err = s.close()
	}
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "toc", ".tmp-1"))
	e = openEngine(t, root, p)
	for _, path := range []string{e.mountPath(left.id), e.treePath(left.id), e.tocPath(left.layers[0].diffID), filepath.Join(root, "toc", ".tmp-1")} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

// A read that waits for a removed image fails, and the image's stream ends.
func TestRemovedImageIsNotFetched(t *testing.T) {
	p := newFakeProxy(t)
	img := newTestImage(t, files{"a": "1", "b": "2"})
	p.add(testRef, img)
	ended := make(chan struct{})
	p.set(func(r *http.Request, o toc.Object, b []byte) ([]byte, error) {
		if o.Digest == img.layers[0].Objects[1].Digest {
			<-r.Context().Done()
			close(ended)
			return nil, errCut
		}
		return b, nil
	})
	e := openEngine(t, t.TempDir(), p)
	pull(t, e, testRef).Release()
	for e.Status(testRef)[0].ObjectsLocal < 1 {
		time.Sleep(time.Millisecond)
	}
	if err := e.Sweep(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the stream goes on")
	}
	if _, n := e.objects.Usage(); n != 0 {
		t.Errorf("%d objects left", n)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.claims) != 0 || len(e.owners) != 0 {
		t.Errorf("%d claims and %d shares left", len(e.claims), len(e.owners))
	}
}

// A root on a read-only file system is told from a kernel that cannot mount images.
func TestReadOnlyRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	for name, made := range map[string]bool{"new": false, "used": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			root := filepath.Join(dir, "root")
			if made {
				e := openEngine(t, root, newFakeProxy(t))
				closeEngine(t, e, true)
			}
			for _, flags := range []uintptr{unix.MS_BIND, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY} {
				if err := unix.Mount(dir, dir, "", flags, ""); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			_, err := Open(t.Context(), Config{Root: root, Proxies: []Proxy{{Address: "http://127.0.0.1:1"}}})
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "root_path") {
				t.Errorf("got %v, want what to do about it", err)
			}
		})
	}
}
