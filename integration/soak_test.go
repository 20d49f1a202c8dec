package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/weird"
)

// generated pushes an image of random files, most of which others have as well.
func (w *world) generated(i int) string {
	w.t.Helper()
	some := func(seed uint64, dir string, n, size int) map[string]string {
		files := map[string]string{}
		r := rand.NewChaCha8([32]byte{byte(seed)})
		for j := range n {
			b := make([]byte, size)
			_, _ = r.Read(b)
			files[fmt.Sprintf("%s/%d", dir, j)] = string(b)
		}
		return files
	}
	name := fmt.Sprintf("soak%d", i)
	im := weird.Files(name, some(200, "base", 150, 4000), some(uint64(100+i%5), "shared", 80, 3000),
		some(uint64(i), "own", 40, 5000), some(uint64(50+i), "large", 1, 3<<20))
	layout := filepath.Join(w.t.TempDir(), name)
	if err := im.Write(layout); err != nil {
		w.t.Fatal(err)
	}
	ref, err := w.Push(w.t.Context(), layout, name, weird.Tag)
	if err != nil {
		w.t.Fatal(err)
	}
	return ref
}

// held is what a process must not collect.
type held struct{ goroutines, files, mounts int }

func (n *node) held() (h held) {
	n.t.Helper()
	profile := n.ctr("pprof", "--debug-socket", n.DebugSocket(), "goroutines", "--debug", "1")
	if _, err := fmt.Sscanf(profile, "goroutine profile: total %d", &h.goroutines); err != nil {
		n.t.Fatalf("%v: %.100q", err, profile)
	}
	files, err := os.ReadDir("/proc/" + strconv.Itoa(n.PID()) + "/fd")
	if err != nil {
		n.t.Fatal(err)
	}
	mounts, err := n.Mounts()
	if err != nil {
		n.t.Fatal(err)
	}
	h.files, h.mounts = len(files), len(mounts)
	return h
}

// Many clients pull many images at once and remove them again. Nothing gets stuck, and
// in the end nothing is left: no goroutine, no file, no mount, no byte.
func TestManyClients(t *testing.T) {
	images, clients, pulls := 20, 8, 25
	if testing.Short() {
		images, clients, pulls = 6, 4, 5
	}
	w, _, n := accelerated(t, lan)
	refs := make([]string, images)
	for i := range refs {
		refs[i] = w.generated(i)
	}
	round := func() {
		var g errgroup.Group
		for c := range clients {
			space := fmt.Sprintf("client%d", c)
			g.Go(func() error {
				for i := range pulls {
					ref := refs[(c*7+i*3)%images]
					if _, err := n.Ctr(t.Context(), "-n", space, "image", "pull", "--plain-http", "--snapshotter", starlight, ref); err != nil {
						return err
					}
					if i%3 == 2 {
						if _, err := n.Ctr(t.Context(), "-n", space, "image", "rm", "--sync", ref); err != nil {
							return err
						}
					}
				}
				left, err := n.Ctr(t.Context(), "-n", space, "image", "ls", "-q")
				if err != nil {
					return err
				}
				for ref := range strings.FieldsSeq(left) {
					if _, err := n.Ctr(t.Context(), "-n", space, "image", "rm", "--sync", ref); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	round() // what is made once is there after it
	settled := func(want held) (got held) {
		for range 100 {
			got = n.held()
			if got.goroutines <= want.goroutines+10 && got.files <= want.files+5 && got.mounts <= want.mounts {
				break
			}
			time.Sleep(100 * time.Millisecond) // connections of clients end a little later
		}
		return got
	}
	before := settled(held{})
	round()
	after := settled(before)
	if after.goroutines > before.goroutines+10 || after.files > before.files+5 || after.mounts > before.mounts {
		t.Errorf("got %+v after the second round, %+v after the first", after, before)
	}
	if all, _ := n.wrongObjects(); all != 0 {
		t.Errorf("%d objects are left", all)
	}
	for _, dir := range []string{"toc", "trees", "mnt", "partial", "lazyfs/index"} {
		if left, err := os.ReadDir(filepath.Join(n.Snapshotter(), dir)); err != nil || len(left) != 0 {
			t.Errorf("%s: %d files are left, %v", dir, len(left), err)
		}
	}
	if peak, err := process.PeakRSS(n.PID()); err != nil || peak > 300<<20 {
		t.Errorf("containerd took %d MiB, %v", peak>>20, err)
	}
}
