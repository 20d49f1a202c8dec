// Package needs finds out what a container really reads until it is of use: which
// files it opens and when, and which pages of them. It watches a start on stock
// containerd with everything local, so that it owes nothing to what it judges.
package needs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// File that was opened.
type File struct {
	Path string `json:"path"`
	// At is when it was opened first, in seconds from the start of the container.
	At   float64 `json:"at"`
	Size int64   `json:"size"`
	// Read are the bytes of its pages that were touched.
	Read int64 `json:"read"`
}

// Start is what a start read.
type Start struct {
	// Ready is when the application was of use, in seconds.
	Ready float64 `json:"ready"`
	// Files in the order of opening.
	Files []File `json:"files"`
}

// Bytes are those of all pages that were touched.
func (s Start) Bytes() int64 {
	var sum int64
	for _, f := range s.Files {
		sum += f.Read
	}
	return sum
}

// Paths in the order of opening, without the leading slash.
func (s Start) Paths() []string {
	var all []string
	for _, f := range s.Files {
		all = append(all, strings.TrimPrefix(f.Path, "/"))
	}
	return all
}

// Of returns what a start of an image reads, from the cache beside the corpus if it
// was watched before.
func Of(ctx context.Context, w *sandbox.World, bin tools.Binaries, im corpus.Image) (*Start, error) {
	dir, err := corpus.Dir()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "needs", im.Name, im.Tag+"-"+im.Manifest.Encoded()[:12]+".json")
	if b, err := os.ReadFile(file); err == nil {
		var s Start
		return &s, json.Unmarshal(b, &s)
	}
	s, err := watch(ctx, w, bin, im)
	if err != nil {
		return nil, fmt.Errorf("watch a start of %s:%s: %w", im.Name, im.Tag, err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	tmp := fmt.Sprintf("%s.%d", file, os.Getpid())
	return s, errors.Join(os.WriteFile(tmp, b, 0o644), os.Rename(tmp, file))
}

// command is what the configuration of an image says to run, as flags and
// arguments of ctr for a root file system that is no image.
func command(im corpus.Image) (flags, argv []string, err error) {
	var m ocispec.Manifest
	if err := blob(im, im.Manifest.Encoded(), &m); err != nil {
		return nil, nil, err
	}
	var c ocispec.Image
	if err := blob(im, m.Config.Digest.Encoded(), &c); err != nil {
		return nil, nil, err
	}
	for _, e := range c.Config.Env {
		flags = append(flags, "--env", e)
	}
	if c.Config.WorkingDir != "" {
		flags = append(flags, "--cwd", c.Config.WorkingDir)
	}
	argv = im.Ready.Argv
	if len(argv) == 0 {
		argv = slices.Concat(c.Config.Entrypoint, c.Config.Cmd)
	}
	return flags, argv, nil
}

func blob(im corpus.Image, hex string, v any) error {
	b, err := os.ReadFile(filepath.Join(im.Layout, "blobs", "sha256", hex))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func inOrder(opened map[string]float64) []File {
	var all []File
	for p, at := range opened {
		all = append(all, File{Path: p, At: at})
	}
	slices.SortFunc(all, func(a, b File) int {
		return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Path, b.Path))
	})
	return all
}
