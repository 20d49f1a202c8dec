package erofsimg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/internal/fscmp"
	"github.com/starlight-delta/starlight/plugins/internal/erofsimg/erofsimgtest"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
}

// tempDir is t.TempDir with a name that can stand in mount options.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "erofsimg-") //nolint:usetesting // t.TempDir has the name of the test in it, with commas and colons
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestMain silences containerd, which warns of each xattr it ignores.
func TestMain(m *testing.M) {
	if err := log.SetLevel("error"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// errUnpack is a refusal of an image, by containerd or by Merge.
var errUnpack = errors.New("image refused")

// mountStock unpacks the layers with containerd's overlayfs snapshotter and
// applier, and mounts a container's root file system at the path it returns.
func mountStock(t testing.TB, dir string, tars [][]byte) (string, error) {
	t.Helper()
	ctx := context.Background()
	sn, err := overlay.NewSnapshotter(filepath.Join(dir, "snapshotter"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sn.Close() })
	cs, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	applier := apply.NewFileSystemApplier(cs)
	parent := ""
	for i, b := range tars {
		key, name := fmt.Sprintf("extract-%d", i), fmt.Sprintf("layer-%d", i)
		mounts, err := sn.Prepare(ctx, key, parent)
		if err != nil {
			t.Fatal(err)
		}
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b))}
		if err := content.WriteBlob(ctx, cs, key, bytes.NewReader(b), desc); err != nil {
			t.Fatal(err)
		}
		if _, err := applier.Apply(ctx, desc, mounts); err != nil {
			return "", fmt.Errorf("layer %d: %w: %w", i, errUnpack, err)
		}
		if err := sn.Commit(ctx, name, key); err != nil {
			t.Fatal(err)
		}
		parent = name
	}
	mounts, err := sn.Prepare(ctx, "container", parent)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "stock")
	mountAll(t, root, func() error { return mount.All(mounts, root) })
	return root, nil
}

// mountOurs merges the layers, writes the image and mounts it under an upper
// directory with the objects below, in each way of stacking that the kernel has.
func mountOurs(t testing.TB, dir string, tars [][]byte) (roots []string, err error) {
	t.Helper()
	objects := filepath.Join(dir, "objects")
	if err := os.Mkdir(objects, 0o700); err != nil {
		t.Fatal(err)
	}
	var layers []*toc.TOC
	for _, b := range tars {
		l, err := erofsimgtest.TOC(b, objects)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	tree, err := toc.Merge(layers...)
	if errors.Is(err, toc.ErrInvalid) {
		return nil, fmt.Errorf("%w: %w", errUnpack, err)
	}
	if err != nil {
		t.Fatalf("error is not ErrInvalid: %v", err)
	}
	best, err := Probe(dir)
	if err != nil {
		t.Fatal(err)
	}
	for s := best; s <= Ordinary; s++ {
		roots = append(roots, mountTree(t, dir, tree, objects, s))
	}
	return roots, nil
}

func mountTree(t testing.TB, dir string, tree *toc.Tree, objects string, s Stacking) string {
	t.Helper()
	dir = filepath.Join(dir, fmt.Sprint("stacking", int(s)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "image.erofs")
	if err := writeFile(image, tree, s); err != nil {
		t.Fatal(err)
	}
	fsck(t, image)
	em, root := filepath.Join(dir, "em"), filepath.Join(dir, "ours")
	mountAll(t, em, func() error { return Mount(image, em) })
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := fmt.Sprintf("metacopy=on,redirect_dir=on,index=off,upperdir=%s/upper,workdir=%s/work,lowerdir=%s", dir, dir, s.Lowerdir([]string{em}, []string{objects}))
	mountAll(t, root, func() error { return unix.Mount("overlay", root, "overlay", 0, options) })
	return root
}

func mountAll(t testing.TB, dir string, do func() error) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := do(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(dir); err != nil {
			t.Error(err)
		}
	})
}

// compareStock holds what we make of the layers against what containerd does.
// It tells whether the image was accepted.
func compareStock(t testing.TB, layers []erofsimgtest.Layer) bool {
	t.Helper()
	dir := tempDir(t)
	// File systems stamp with the time of the last tick.
	start := time.Now().Add(-time.Second)
	var tars [][]byte
	for _, l := range layers {
		b, err := l.Tar()
		if err != nil {
			t.Fatal(err)
		}
		tars = append(tars, b)
	}
	stock, stockErr := mountStock(t, dir, tars)
	ours, oursErr := mountOurs(t, dir, tars)
	if (stockErr == nil) != (oursErr == nil) {
		t.Fatalf("containerd: %v; Merge: %v", stockErr, oursErr)
	}
	if stockErr != nil {
		t.Logf("containerd: %v; Merge: %v", stockErr, oursErr)
		return false
	}
	for _, root := range ours {
		diffs, err := fscmp.Compare(stock, root, fscmp.Options{DirTimesBefore: start})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range diffs {
			t.Errorf("stock != %s: %v", root, d)
		}
	}
	return true
}
