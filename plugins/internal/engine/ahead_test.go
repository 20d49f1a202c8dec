package engine

import (
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func TestReadersGetMoreTheLongerTheyRead(t *testing.T) {
	const pieces = 240
	o := toc.Object{Size: pieces*toc.PieceSize - 5, Pieces: make([]toc.Digest, pieces)}
	tests := map[string][]struct {
		off, n int64
		want   wire.Range
	}{
		"from the start": {
			{0, 4096, wire.Range{Pieces: 4}},
			{4 * toc.PieceSize, 4096, wire.Range{First: 4, Pieces: 8}},
			{12 * toc.PieceSize, 4096, wire.Range{First: 12, Pieces: 16}},
			{28 * toc.PieceSize, 4096, wire.Range{First: 28, Pieces: 32}},
			{60 * toc.PieceSize, 4096, wire.Range{First: 60, Pieces: 64}},
			{124 * toc.PieceSize, 4096, wire.Range{First: 124, Pieces: 64}},
			{188 * toc.PieceSize, 4096, wire.Range{First: 188, Pieces: 52}},
		},
		"here and there": {
			{9 * toc.PieceSize, 1, wire.Range{First: 9, Pieces: 4}},
			{40*toc.PieceSize - 1, 2, wire.Range{First: 39, Pieces: 4}},
			{5, 7*toc.PieceSize - 5, wire.Range{Pieces: 7}},
			{1000 * toc.PieceSize, 4096, wire.Range{First: pieces - 1, Pieces: 1}}, // beyond the end
		},
	}
	for name, reads := range tests {
		t.Run(name, func(t *testing.T) {
			q := newDemands()
			for _, r := range reads {
				if got := q.widen(pieceRange(&o, 0, r.off, r.n), pieces); got != r.want {
					t.Errorf("%d bytes at %d: got %+v, want %+v", r.n, r.off, got, r.want)
				}
			}
		})
	}
}

func TestComingIsWhatComesNext(t *testing.T) {
	e := &Engine{}
	d := toc.Digest{1}
	if e.coming(d, wire.Range{}) {
		t.Error("nothing streams, and yet it is coming")
	}
	e.streaming.Store(d, uint32(6))
	for first, want := range map[uint32]bool{0: false, 6: false, 7: true, 10: true, 11: false} {
		if got := e.coming(d, wire.Range{First: first}); got != want {
			t.Errorf("piece %d after 6: got %v, want %v", first, got, want)
		}
	}
	r := &receipt{e: e}
	r.turn(d)
	if !e.coming(d, wire.Range{First: 7}) {
		t.Error("the object that comes does not")
	}
	r.turn(toc.Digest{})
	if e.coming(d, wire.Range{First: 7}) {
		t.Error("the stream has turned to small objects, and yet a large one is coming")
	}
}
