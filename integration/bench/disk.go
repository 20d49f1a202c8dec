package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/report"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/system"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// diskImage has many files and some large ones.
const diskImage = "golang"

// operation is work on the files of an image; it must not depend on their order.
type operation struct {
	name string
	run  func(files []string) error
}

func operations() []operation {
	return []operation{
		{"open", openAll},
		{"sequential read", readAll},
		{"random read", readRandom},
		{"mmap", mapAll},
	}
}

// diskRuns is how often each operation runs with each snapshotter; the median
// counts.
const diskRuns = 5

// disk compares a complete image with an unpacked one, cold and warm, in turns.
func (b *bench) disk(ctx context.Context) (err error) {
	w, err := sandbox.New(ctx, wan.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	im, err := corpus.Load(diskImage, corpus.Tags[0])
	if err != nil {
		return err
	}
	ours := system.Starlight{Binaries: b.bin}
	refs, err := ours.Publish(ctx, w, []corpus.Image{im})
	if err != nil {
		return err
	}
	n, err := ours.Node(ctx, w, diskImage, "disk")
	if err != nil {
		return err
	}
	var files [2][]string
	for i, snapshotter := range []string{"overlayfs", n.Snapshotter} {
		if err := n.Node.Pull(ctx, refs[0], "--snapshotter", snapshotter); err != nil {
			return err
		}
		if snapshotter == n.Snapshotter {
			if _, err := n.Wait(ctx, refs[0]); err != nil {
				return err
			}
		}
		dir := filepath.Join(w.Dir, "view-"+snapshotter)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if _, err := n.Ctr(ctx, "image", "mount", "--snapshotter", snapshotter, refs[0], dir); err != nil {
			return err
		}
		if files[i], err = regularFiles(dir); err != nil {
			return err
		}
	}
	for _, op := range operations() {
		for _, cold := range []bool{true, false} {
			r, err := compare(op, cold, files)
			if err != nil {
				return fmt.Errorf("%s: %w", op.name, err)
			}
			if err := b.log.Add(report.Record{Image: diskImage, Disk: &r}); err != nil {
				return err
			}
			say("%s, cold %v: overlayfs %.3f s, Starlight %.3f s", op.name, cold, r.Overlayfs, r.Starlight)
		}
	}
	return n.Remove()
}

func compare(op operation, cold bool, files [2][]string) (report.Disk, error) {
	var took [2][]float64
	for run := range diskRuns + 1 {
		for k := range 2 {
			side := (k + run) % 2 // neither is always first
			if cold {
				if err := sandbox.DropCaches(); err != nil {
					return report.Disk{}, err
				}
			}
			start := time.Now()
			if err := op.run(files[side]); err != nil {
				return report.Disk{}, err
			}
			if run > 0 { // the first warms up
				took[side] = append(took[side], time.Since(start).Seconds())
			}
		}
	}
	for _, t := range took {
		slices.Sort(t)
	}
	return report.Disk{Operation: op.name, Cold: cold, Overlayfs: took[0][diskRuns/2], Starlight: took[1][diskRuns/2]}, nil
}

func regularFiles(dir string) ([]string, error) {
	var all []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			all = append(all, p)
		}
		return err
	})
	return all, err
}

func openAll(files []string) error {
	for _, p := range files {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		f.Close()
	}
	return nil
}

func readAll(files []string) error {
	buf := make([]byte, 128<<10)
	for _, p := range files {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(io.Discard, struct{ io.Reader }{f}, buf)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// largest returns the files that hold most of the bytes.
func largest(files []string) ([]string, error) {
	const least = 4 << 20
	var all []string
	for _, p := range files {
		st, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if st.Size() >= least {
			all = append(all, p)
		}
	}
	return all, nil
}

// readRandom reads single pages all over the large files.
func readRandom(files []string) error {
	big, err := largest(files)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, 2)) // the same pages in every run
	buf := make([]byte, 4096)
	for _, p := range big {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		st, err := f.Stat()
		if err != nil {
			f.Close()
			return err
		}
		for range 2000 {
			if _, err := f.ReadAt(buf, rng.Int64N(st.Size()-4096)); err != nil {
				f.Close()
				return err
			}
		}
		f.Close()
	}
	return nil
}

// mapAll maps the large files and touches each page.
func mapAll(files []string) error {
	big, err := largest(files)
	if err != nil {
		return err
	}
	var sum byte
	for _, p := range big {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		st, err := f.Stat()
		if err != nil {
			f.Close()
			return err
		}
		m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
		f.Close()
		if err != nil {
			return err
		}
		for i := 0; i < len(m); i += 4096 {
			sum ^= m[i]
		}
		if err := unix.Munmap(m); err != nil {
			return err
		}
	}
	runtime.KeepAlive(sum) // or the compiler leaves out the reads
	return nil
}
