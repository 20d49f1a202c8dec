package erofsimg

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/starlight-delta/starlight/plugins/internal/erofsimg/erofsimgtest"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

var (
	seed   = flag.Uint64("seed", 1, "seed of the first random image")
	images = flag.Uint64("images", 60, "number of random images")
)

// TestMergeRandomLikeContainerd is TestMergeLikeContainerd for images nobody
// would think of. A failure tells the seed; -seed and -images repeat it.
func TestMergeRandomLikeContainerd(t *testing.T) {
	needRoot(t)
	accepted := 0
	for s := *seed; s < *seed+*images; s++ {
		r := rand.New(rand.NewPCG(s, 0))
		layers, entries := 1+r.IntN(6), 20+r.IntN(100)
		switch s % 20 {
		case 0:
			layers, entries = 127, 300
		case 1:
			entries = 600
		}
		image := erofsimgtest.Random(r, layers, entries, mergeable())
		t.Run(fmt.Sprintf("seed %d", s), func(t *testing.T) {
			if compareStock(t, image) {
				accepted++
			}
			if t.Failed() {
				t.Log(erofsimgtest.Describe(image))
			}
		})
	}
	if accepted == 0 {
		t.Error("no image was accepted")
	}
}

// mergeable tells whether Merge takes an image that grows layer by layer.
func mergeable() func([]erofsimgtest.Layer) bool {
	var done []*toc.TOC
	return func(image []erofsimgtest.Layer) bool {
		for i := len(done); i < len(image)-1; i++ {
			done = append(done, tocOf(image[i]))
		}
		_, err := toc.Merge(append(done[:len(image)-1:len(image)-1], tocOf(image[len(image)-1]))...)
		return err == nil
	}
}

func tocOf(l erofsimgtest.Layer) *toc.TOC {
	b, err := l.Tar()
	if err != nil {
		panic(err)
	}
	t, err := erofsimgtest.TOC(b, "")
	if err != nil {
		panic(err)
	}
	return t
}
