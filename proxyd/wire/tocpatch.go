package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/starlight-delta/starlight/proxyd/wire/patch"
)

// PatchTOC returns the payload of a toc frame for a layer with a Base: the patch that
// makes encoded from base, which are encoded TOCs.
func PatchTOC(ctx context.Context, base, encoded []byte) ([]byte, error) {
	out := binary.AppendUvarint(nil, uint64(len(encoded)))
	o := patch.Options{Method: patch.HD, Step: 4, Memory: 64 << 20}
	err := patch.Encode(ctx, bytes.NewReader(base), bytes.NewReader(encoded), int64(len(base)), int64(len(encoded)), o,
		func(_ int, segment []byte) error {
			out = binary.AppendUvarint(out, uint64(len(segment)))
			out = append(out, segment...)
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("patch a TOC: %w", err)
	}
	return out, nil
}

// ApplyTOCPatch returns the encoded TOC that PatchTOC was given. Malformed patches give
// an error that wraps [toc.ErrInvalid]; that the result is what was meant is for its digest
// to tell.
func ApplyTOCPatch(base, payload []byte) ([]byte, error) {
	in := uvarints{b: payload}
	size := int(in.next(MaxTOCFrame))
	if in.bad {
		return nil, invalid("patch of a TOC without size")
	}
	a, err := patch.NewApplier(bytes.NewReader(base), int64(len(base)), int64(size), nil, patch.GoodMemory)
	if err != nil {
		return nil, fmt.Errorf("bundle: patch of a TOC: %w", err)
	}
	var out []byte
	for piece := 0; len(out) < size; piece++ {
		n := int(in.next(patch.MaxSegment))
		if in.bad || n > len(in.b) {
			return nil, invalid("patch of a TOC is cut off")
		}
		if out, err = a.Apply(out, piece, in.b[:n]); err != nil {
			return nil, invalid("patch of a TOC: %v", err)
		}
		in.b = in.b[n:]
	}
	if len(in.b) > 0 {
		return nil, invalid("patch of a TOC is longer than the TOC")
	}
	return out, nil
}
