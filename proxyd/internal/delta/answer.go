package delta

import (
	"context"
	"fmt"
	"slices"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// How many neighbours an answer brings at most.
const (
	maxNeighbours      = 1024
	maxNeighboursBytes = 2 << 20 // some 40 ms at 100 Mbit/s, compressed
)

// CheckAsked tells whether all objects that a request asks for exist; the error
// wraps [toc.ErrInvalid].
func CheckAsked(img *Image, asked []Item) error {
	for _, it := range asked {
		id := it.Object
		if int64(id) >= int64(len(img.Objects)) {
			return fmt.Errorf("the image has %d objects, number %d is asked for: %w", len(img.Objects), id, toc.ErrInvalid)
		}
		if n := img.Objects[id].NumPieces(); int64(it.First) >= int64(n) {
			return fmt.Errorf("object %d has %d pieces, number %d is asked for: %w", id, n, it.First, toc.ErrInvalid)
		}
	}
	return nil
}

// Answer writes the data frames that answer a request for single objects to w, and
// no end frame: what is asked for, in its order, and then, unless exact, small
// objects beside them in the tree, which will probably be read next. claims belongs
// to the stream under way to the same worker and may be nil; what is asked for is
// sent even if it is claimed, because it may be stuck in that stream.
func Answer(ctx context.Context, w *wire.Writer, img *Image, asked []Item, exact bool, packs Packs, claims *Claims) error {
	if err := CheckAsked(img, asked); err != nil {
		return err
	}
	var f frame
	m := newMaker(img, packs)
	m.target, m.most = solid, maxNeighboursBytes
	var items []Item
	sent := make(map[uint32]bool, len(asked)+maxNeighbours)
	seen := newPieces(img)
	for _, it := range asked {
		first, end := clip(it, img.Objects[it.Object].NumPieces())
		for i := first; i < end; i++ {
			if !seen.set(it.Object, i) {
				continue
			}
			if claims != nil {
				claims.Claim(it.Object, i)
			}
			items = extend(items, it.Object, i)
			sent[it.Object] = true
			if size := img.Objects[it.Object].Size; size < SmallObject {
				m.most += int(size)
			}
		}
	}
	m.free = func(context.Context) (*frame, error) { return &f, nil }
	m.emit = func(_ context.Context, f *frame) error { return w.Data(f.index, f.contents, f.compressed) }
	if err := m.send(ctx, items); err != nil || exact {
		return err
	}
	return m.send(ctx, neighbours(img, items, sent, claims))
}

// neighbours picks small objects near those asked: of the directory of each what
// follows it by name, then what precedes it, then what is below and beside, as far as all
// of that is not too much. It claims what it picks. Programs come in trees of small
// files, and each that is missed costs a round trip.
func neighbours(img *Image, asked []Item, sent map[uint32]bool, claims *Claims) []Item {
	var picked []Item
	room := int64(maxNeighboursBytes)
	pick := func(n uint32) (more bool) {
		size := img.Objects[n].Size
		if sent[n] || size > room || claims != nil && !claims.Claim(n, 0) {
			return true
		}
		sent[n] = true
		picked = append(picked, Item{Object: n, Pieces: 1})
		room -= size
		return len(picked) < maxNeighbours
	}
	empty := map[int32]bool{} // folders in which nothing is left to pick
	for _, it := range asked {
		id := it.Object
		if !img.needed[id] || img.dirs[id] < 0 || empty[img.dirs[id]] {
			continue
		}
		dir := &img.folders[img.dirs[id]]
		at := slices.Index(dir.own, id)
		for i := range dir.own {
			if !pick(dir.own[(at+i)%len(dir.own)]) {
				return picked
			}
		}
		empty[img.dirs[id]] = true
		first, end := dir.first, dir.first // of img.small, looked at already
		for d := img.dirs[id]; d >= 0 && img.folders[d].bytes <= maxNeighboursBytes; d = img.folders[d].parent {
			f := &img.folders[d]
			for _, n := range slices.Concat(img.small[end:f.end], img.small[f.first:first]) {
				if !pick(n) {
					return picked
				}
			}
			first, end = f.first, f.end
			empty[d] = true
		}
	}
	return picked
}
