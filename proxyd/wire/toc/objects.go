package toc

// NumPieces returns the number of pieces in which the object is sent.
func (o *Object) NumPieces() int { return max(1, pieceDigests(o.Size)) }

// PieceLen returns the length of piece i, which must be below NumPieces.
func (o *Object) PieceLen(i int) int {
	return int(min(PieceSize, o.Size-int64(i)*PieceSize))
}

// PieceDigest returns the sha256 of piece i, which must be below NumPieces.
func (o *Object) PieceDigest(i int) Digest {
	if len(o.Pieces) == 0 {
		return o.Digest
	}
	return o.Pieces[i]
}

// ObjectList returns the object list of the image that has these layers, from
// the lowest to the top: each distinct object where it first appears. Data frames
// and requests name objects by their index in it.
func ObjectList(layers ...*TOC) []Object {
	n := 0
	for _, l := range layers {
		n += len(l.Objects)
	}
	list := make([]Object, 0, n)
	if len(layers) == 1 {
		return append(list, layers[0].Objects...) // distinct in themselves
	}
	seen := make(map[Digest]struct{}, n)
	for _, l := range layers {
		for _, o := range l.Objects {
			if _, ok := seen[o.Digest]; !ok {
				seen[o.Digest] = struct{}{}
				list = append(list, o)
			}
		}
	}
	return list
}
