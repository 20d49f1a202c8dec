package starlight_test

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/google/go-cmp/cmp"

	"github.com/starlight-delta/starlight/plugins/snapshots/starlight"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getuid() == 0 {
		// containerd's suites ask for root with a flag of their own.
		if err := flag.Set("test.root", "true"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
}

func newSnapshotter(t testing.TB, c starlight.Config, e starlight.Engine) *starlight.Snapshotter {
	t.Helper()
	s, err := starlight.New(c, e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestPlainEqualsOverlay does the same to our snapshotter and to containerd's
// overlayfs, and compares all answers.
func TestPlainEqualsOverlay(t *testing.T) {
	needRoot(t)
	mapped := func(uids, gids string) snapshots.Opt {
		return snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotUIDMapping: uids,
			snapshots.LabelSnapshotGIDMapping: gids,
		})
	}
	for name, opts := range map[string]struct {
		ours   starlight.Config
		theirs []overlay.Opt
	}{
		"sync":    {starlight.Config{}, nil},
		"async":   {starlight.Config{AsyncRemove: true}, []overlay.Opt{overlay.AsynchronousRemove}},
		"remap":   {starlight.Config{RemapIDs: true}, []overlay.Opt{overlay.WithRemapIDs}},
		"label":   {starlight.Config{UpperdirLabel: true}, []overlay.Opt{overlay.WithUpperdirLabel}},
		"options": {starlight.Config{MountOptions: []string{"volatile"}}, []overlay.Opt{overlay.WithMountOptions([]string{"volatile"})}},
		"index": {starlight.Config{MountOptions: []string{"index=on", "nfs_export=on"}},
			[]overlay.Opt{overlay.WithMountOptions([]string{"index=on", "nfs_export=on"})}},
	} {
		t.Run(name, func(t *testing.T) {
			ourRoot, theirRoot := t.TempDir(), t.TempDir()
			opts.ours.Root = ourRoot
			ours := newSnapshotter(t, opts.ours, newLazy(t))
			theirs, err := overlay.NewSnapshotter(theirRoot, opts.theirs...)
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()

			type answer struct {
				Mounts []mount.Mount
				Failed bool
				Labels map[string]string
			}
			do := func(s snapshots.Snapshotter, root string, f func(snapshots.Snapshotter) (key string, m []mount.Mount, err error)) answer {
				key, m, err := f(s)
				a := answer{Failed: err != nil}
				for _, m := range m {
					m.Source = strings.ReplaceAll(m.Source, root, "ROOT")
					m.Options = slices.Clone(m.Options)
					for i := range m.Options {
						m.Options[i] = strings.ReplaceAll(m.Options[i], root, "ROOT")
					}
					a.Mounts = append(a.Mounts, m)
				}
				if info, err := s.Stat(t.Context(), key); err == nil {
					a.Labels = info.Labels
					for k, v := range a.Labels {
						a.Labels[k] = strings.ReplaceAll(v, root, "ROOT")
					}
				}
				return a
			}
			ctx := t.Context()
			prepare := func(key, parent string, o ...snapshots.Opt) func(snapshots.Snapshotter) (string, []mount.Mount, error) {
				return func(s snapshots.Snapshotter) (string, []mount.Mount, error) {
					m, err := s.Prepare(ctx, key, parent, o...)
					return key, m, err
				}
			}
			view := func(key, parent string, o ...snapshots.Opt) func(snapshots.Snapshotter) (string, []mount.Mount, error) {
				return func(s snapshots.Snapshotter) (string, []mount.Mount, error) {
					m, err := s.View(ctx, key, parent, o...)
					return key, m, err
				}
			}
			mounts := func(key string) func(snapshots.Snapshotter) (string, []mount.Mount, error) {
				return func(s snapshots.Snapshotter) (string, []mount.Mount, error) {
					m, err := s.Mounts(ctx, key)
					return key, m, err
				}
			}
			commit := func(name, key string, o ...snapshots.Opt) func(snapshots.Snapshotter) (string, []mount.Mount, error) {
				return func(s snapshots.Snapshotter) (string, []mount.Mount, error) {
					return name, nil, s.Commit(ctx, name, key, o...)
				}
			}
			remove := func(key string) func(snapshots.Snapshotter) (string, []mount.Mount, error) {
				return func(s snapshots.Snapshotter) (string, []mount.Mount, error) { return key, nil, s.Remove(ctx, key) }
			}
			for i, step := range []func(snapshots.Snapshotter) (string, []mount.Mount, error){
				prepare("k1", ""), mounts("k1"), commit("c1", "k1"), mounts("c1"), commit("c1", "k1"),
				prepare("k2", "c1", mapped("0:1000:65536", "0:2000:65536")), mounts("k2"), commit("c2", "k2"),
				prepare("k3", "c2"), view("v0", ""), view("v1", "c1"), view("v2", "c2", mapped("0:5:10", "0:6:10")), mounts("v2"),
				prepare("bad", "c1", mapped("0:1000", "0:1")), prepare("bad2", "c1", mapped("1:1000:5", "1:5:5")),
				prepare("k3", "c2"), prepare("k4", "k3"), prepare("k5", "none"), mounts("none"),
				commit("c5", "v1"), remove("c1"), remove("v2"), remove("none"),
				prepare("r1", ""), commit("rebased", "r1", snapshots.WithParent("c2")), view("v3", "rebased"),
				prepare("r2", "c1"), commit("x", "r2", snapshots.WithParent("c2")),
				prepare("m1", "", mapped("0:1000:65536", "0:2000:65536")), mounts("m1"), view("mv", "", mapped("0:1:1", "0:1:1")),
			} {
				a, b := do(ours, ourRoot, step), do(theirs, theirRoot, step)
				if d := cmp.Diff(b, a); d != "" {
					t.Errorf("step %d: overlayfs, starlight:\n%s", i, d)
				}
			}
			if d := cmp.Diff(owners(t, theirRoot), owners(t, ourRoot)); d != "" {
				t.Errorf("directories of overlayfs, starlight:\n%s", d)
			}
		})
	}
}
