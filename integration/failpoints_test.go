package integration

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// containerd ends at each step that changes what is on the disk, as by kill -9 and as by
// a power cut. Whatever was half done is right when it is back, and all works on.
func TestFailPoints(t *testing.T) {
	bin, steps, err := tools.FailPoints(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, lan)
	p := w.proxyd()
	l := &life{refs: []string{w.generated(0), w.generated(5)}, dir: t.TempDir()}
	w.ingest(p, l.refs...)
	t.Cleanup(l.unmount)
	disk, err := w.NewDisk("node", 256)
	if err != nil {
		t.Skip("no file system to cut the power of:", err)
	}
	failing := w.bin
	failing.Containerd = bin
	l.node = w.node(sandbox.NodeConfig{Binaries: failing, Proxies: []string{p.Address}})
	if err := l.live(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, cut := range []bool{false, true} {
		for i, step := range steps {
			if testing.Short() && i%7 != 3 {
				continue
			}
			name := step + "/" + map[bool]string{false: "kill", true: "power"}[cut]
			t.Run(name, func(t *testing.T) {
				l.t = t
				env := []string{"STARLIGHT_FAILPOINT=" + step}
				if cut {
					env = append(env, "STARLIGHT_FAILPOINT_DISK="+l.Dir)
				}
				l.again(env...)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				go func() {
					defer cancel()
					select {
					case <-l.Done():
					case <-ctx.Done():
					}
				}()
				err := l.live(ctx)
				select {
				case <-l.Done():
				case <-time.After(time.Second):
					t.Fatalf("the step was not reached: %v", err)
				}
				if cut {
					l.unmount()
					if err := l.PowerCut(disk); err != nil {
						t.Fatal(err)
					}
				}
				l.again()
				if _, wrong := l.wrongObjects(); wrong > 0 {
					t.Fatalf("%d objects are wrong", wrong)
				}
				l.clean()
				l.forget()
				if err := l.live(t.Context()); err != nil {
					t.Fatal(err)
				}
				l.clean()
				l.nothing()
			})
			if t.Failed() {
				return
			}
		}
	}
}

// life is all that may happen to images on a node.
type life struct {
	*node
	refs  []string
	dir   string // to mount images in
	roots int    // names in it that were used
}

// root is where an image can be mounted: containerd forgets a place only when it
// collects garbage.
func (l *life) root() string { return filepath.Join(l.dir, strconv.Itoa(l.roots)) }

// unmount unmounts the image that is mounted, if one is.
func (l *life) unmount() { _ = unix.Unmount(l.root(), unix.MNT_DETACH) }

// again starts containerd anew.
func (l *life) again(env ...string) {
	l.t.Helper()
	select {
	case <-l.Done():
	default:
		l.Kill()
	}
	if err := l.Configure(func(c *sandbox.NodeConfig) { c.Env = env }); err != nil {
		l.t.Fatal(err)
	}
	l.start()
}

// forget removes what a life that has ended too soon would have removed itself. Its
// leases would last a day.
func (l *life) forget() {
	l.t.Helper()
	l.unmount()
	for _, key := range []string{"active", "committed"} {
		_, _ = l.Ctr(l.t.Context(), "snapshots", "--snapshotter", starlight, "rm", key) // if it is there
	}
	for id := range strings.FieldsSeq(l.ctr("leases", "ls", "-q")) {
		l.ctr("leases", "rm", id)
	}
}

// live brings all images, uses them, and removes them.
func (l *life) live(ctx context.Context) error {
	run := func(commands ...string) error {
		for _, c := range commands {
			if _, err := l.Ctr(ctx, strings.Fields(c)...); err != nil {
				return err
			}
		}
		return nil
	}
	for _, ref := range l.refs {
		l.roots++
		if err := os.Mkdir(l.root(), 0o755); err != nil {
			return err
		}
		err := run("image pull --plain-http --snapshotter starlight "+ref,
			"image mount --rw --snapshotter starlight "+ref+" "+l.root(),
			"starlight wait "+ref,
			"image unmount --rm --snapshotter starlight "+l.root())
		if err != nil {
			return err
		}
	}
	err := run("snapshots --snapshotter starlight prepare active",
		"snapshots --snapshotter starlight commit committed active",
		"snapshots --snapshotter starlight rm committed")
	for _, ref := range l.refs {
		if err == nil {
			err = run("image rm --sync " + ref)
		}
	}
	return err
}

// nothing checks that nothing is left of what has been removed.
func (l *life) nothing() {
	l.t.Helper()
	if all, _ := l.wrongObjects(); all != 0 {
		l.t.Errorf("%d objects are left", all)
	}
	for _, dir := range []string{"toc", "trees", "mnt", "partial", "lazyfs/index", "snapshots", "staging"} {
		if left, err := os.ReadDir(filepath.Join(l.Snapshotter(), dir)); err != nil || len(left) != 0 {
			l.t.Errorf("%s: %d files are left, %v", dir, len(left), err)
		}
	}
	mounts, err := l.Mounts()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, m := range mounts {
		if m != l.Dir && m != filepath.Join(l.Snapshotter(), "lazy") {
			l.t.Errorf("%s is still mounted", m)
		}
	}
}
