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
	maxNeighbours      = 64
	maxNeighboursBytes = 256 << 10
)

// CheckAsked tells whether all objects that a request asks for exist; the error
// wraps [toc.ErrInvalid].
func CheckAsked(img *Image, asked []uint32) error {
	for _, id := range asked {
		if int64(id) >= int64(len(img.Objects)) {
			return fmt.Errorf("the image has %d objects, number %d is asked for: %w", len(img.Objects), id, toc.ErrInvalid)
		}
	}
	return nil
}

// Answer writes the data frames that answer a request for single objects to w, and
// no end frame: the objects asked for, in their order, and then, unless exact, small
// objects beside them in the tree, which will probably be read next. claims belongs
// to the stream under way to the same worker and may be nil; objects asked for are
// sent even if they are claimed, because they may be stuck in that stream.
func Answer(ctx context.Context, w *wire.Writer, img *Image, asked []uint32, exact bool, packs Packs, claims *Claims) error {
	if err := CheckAsked(img, asked); err != nil {
		return err
	}
	sent := make(map[uint32]bool, len(asked)+maxNeighbours)
	asked = slices.Clone(asked)
	asked = slices.DeleteFunc(asked, func(id uint32) bool {
		dup := sent[id]
		sent[id] = true
		return dup
	})
	var f frame
	m := newMaker(img, packs)
	m.target, m.most = solid, maxNeighboursBytes
	for _, id := range asked {
		if claims != nil {
			claims.Claim(id)
		}
		if size := img.Objects[id].Size; size < SmallObject {
			m.most += int(size)
		}
	}
	m.free = func(context.Context) (*frame, error) { return &f, nil }
	m.emit = func(_ context.Context, f *frame) error { return w.Data(f.index, f.contents, f.compressed) }
	for _, id := range asked {
		if err := m.add(ctx, id); err != nil {
			return err
		}
	}
	if err := m.flush(ctx); err != nil {
		return err
	}
	if exact {
		return nil
	}
	for _, id := range neighbours(img, asked, sent, claims) {
		if err := m.add(ctx, id); err != nil {
			return err
		}
	}
	return m.flush(ctx)
}

// neighbours picks small objects of the directories of asked: what follows each
// by name, then what precedes it. It claims what it picks.
func neighbours(img *Image, asked []uint32, sent map[uint32]bool, claims *Claims) []uint32 {
	var picked []uint32
	room := int64(maxNeighboursBytes)
	empty := map[int32]bool{} // directories in which nothing is left to pick
	for _, id := range asked {
		if !img.needed[id] || img.dirs[id] < 0 || empty[img.dirs[id]] {
			continue
		}
		dir := img.members[img.dirs[id]]
		at := slices.Index(dir, id)
		for i := range dir {
			if len(picked) == maxNeighbours {
				return picked
			}
			n := dir[(at+i)%len(dir)]
			size := img.Objects[n].Size
			if sent[n] || size > room || claims != nil && !claims.Claim(n) {
				continue
			}
			sent[n] = true
			picked = append(picked, n)
			room -= size
		}
		empty[img.dirs[id]] = true
	}
	return picked
}
