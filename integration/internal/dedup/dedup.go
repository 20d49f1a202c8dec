// Package dedup computes what an update would cost with other ways of sending:
// whole layers, and whole files each compressed alone.
package dedup

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
)

// sum of a content.
type sum [sha256.Size]byte

// Image is what is known of a version of an image.
type Image struct {
	// Files is the number of regular files in its tree.
	Files int

	layers []ocispec.Descriptor
	layout string
	// contents of the files of the tree by where they are, the first place of each.
	contents map[sum]place
}

// place of a content: layer and number of the entry in its tar.
type place struct{ layer, entry int }

// Load reads all layers of an image.
func Load(im corpus.Image) (*Image, error) {
	d := &Image{layout: im.Layout, contents: make(map[sum]place)}
	var m ocispec.Manifest
	b, err := os.ReadFile(d.blob(im.Manifest))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	d.layers = m.Layers
	t := tree{files: make(map[string]file)}
	for i := range m.Layers {
		if err := d.each(i, t.apply(i)); err != nil {
			return nil, fmt.Errorf("layer %s: %w", m.Layers[i].Digest, err)
		}
	}
	d.Files = len(t.files)
	for _, f := range t.files {
		if f.size == 0 {
			continue
		}
		if p, ok := d.contents[f.sum]; !ok || f.place.before(p) {
			d.contents[f.sum] = f.place
		}
	}
	return d, nil
}

func (p place) before(q place) bool {
	return cmp.Or(cmp.Compare(p.layer, q.layer), cmp.Compare(p.entry, q.entry)) < 0
}

func (d *Image) blob(dg digest.Digest) string {
	return filepath.Join(d.layout, "blobs", dg.Algorithm().String(), dg.Encoded())
}

// each calls f for the entries of a layer; n counts them.
func (d *Image) each(layer int, f func(n int, h *tar.Header, r io.Reader) error) error {
	blob, err := os.Open(d.blob(d.layers[layer].Digest))
	if err != nil {
		return err
	}
	defer blob.Close()
	z, err := gzip.NewReader(blob)
	if err != nil {
		return err
	}
	r := tar.NewReader(z)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(n, h, r); err != nil {
			return err
		}
	}
}

type file struct {
	sum   sum
	size  int64
	place place
}

// tree is the merge of layers. Only regular files are kept.
type tree struct{ files map[string]file }

func (t *tree) apply(layer int) func(int, *tar.Header, io.Reader) error {
	const whiteout, opaque = ".wh.", ".wh..wh..opq"
	fresh := make(map[string]bool) // paths of this layer, which its whiteouts do not hit
	return func(n int, h *tar.Header, r io.Reader) error {
		p := path.Clean("/" + h.Name)
		dir, base := path.Split(p)
		switch {
		case base == opaque:
			t.remove(path.Clean(dir), false, fresh)
			return nil
		case strings.HasPrefix(base, whiteout):
			t.remove(path.Join(dir, strings.TrimPrefix(base, whiteout)), true, fresh)
			return nil
		}
		fresh[p] = true
		switch h.Typeflag {
		case tar.TypeReg:
			w := sha256.New()
			size, err := io.Copy(w, r)
			if err != nil {
				return err
			}
			t.files[p] = file{sum(w.Sum(nil)), size, place{layer, n}}
		case tar.TypeLink:
			if f, ok := t.files[path.Clean("/"+h.Linkname)]; ok {
				t.files[p] = f
			}
		case tar.TypeDir:
			delete(t.files, p)
		default:
			t.remove(p, true, fresh)
		}
		return nil
	}
}

// remove takes away what is below dir and, if self is set, what is at it.
func (t *tree) remove(dir string, self bool, keep map[string]bool) {
	for p := range t.files {
		if !keep[p] && (self && p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")) {
			delete(t.files, p)
		}
	}
}

// Layers are the bytes of the layers that are not in old, which may be nil.
func (d *Image) Layers(old *Image) int64 {
	var n int64
	for _, l := range d.layers {
		if old == nil || !slices.ContainsFunc(old.layers, func(o ocispec.Descriptor) bool { return o.Digest == l.Digest }) {
			n += l.Size
		}
	}
	return n
}

// Gzip are the bytes of all contents that old does not have, each compressed alone
// with gzip -9.
func (d *Image) Gzip(ctx context.Context, old *Image) (int64, error) {
	want := make([]map[int]bool, len(d.layers))
	for s, p := range d.contents {
		if old != nil {
			if _, ok := old.contents[s]; ok {
				continue
			}
		}
		if want[p.layer] == nil {
			want[p.layer] = make(map[int]bool)
		}
		want[p.layer][p.entry] = true
	}
	sums := make([]int64, len(d.layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for layer, entries := range want {
		if entries == nil {
			continue
		}
		g.Go(func() error {
			var n counter
			z, err := gzip.NewWriterLevel(&n, gzip.BestCompression)
			if err != nil {
				return err
			}
			err = d.each(layer, func(entry int, _ *tar.Header, r io.Reader) error {
				if !entries[entry] {
					return nil
				}
				z.Reset(&n)
				if _, err := io.Copy(z, r); err != nil {
					return err
				}
				return errors.Join(z.Close(), ctx.Err())
			})
			sums[layer] = int64(n)
			return err
		})
	}
	err := g.Wait()
	var all int64
	for _, n := range sums {
		all += n
	}
	return all, err
}

// counter counts what is written to it.
type counter int64

// Write implements io.Writer.
func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}
