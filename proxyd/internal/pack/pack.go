// Package pack is the file in which proxyd keeps the objects of one layer.
package pack

import (
	"errors"
	"io"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
)

// ErrInvalid is wrapped by every error about a malformed pack.
var ErrInvalid = errors.New("invalid pack")

// Reader reads a pack. It is safe for concurrent use.
type Reader struct{ r blob.Reader }

// NewReader reads the index of a pack and takes over r.
func NewReader(r blob.Reader) (*Reader, error) { return nil, errors.New("under construction") }

// Close closes the blob below.
func (r *Reader) Close() error { return r.r.Close() }

// Objects is the number of objects; they are numbered as TOC.Objects.
func (r *Reader) Objects() int { return 0 }

// Size is the size in bytes of an object.
func (r *Reader) Size(object int) int64 { return 0 }

// Pieces is the number of pieces of an object.
func (r *Reader) Pieces(object int) int { return 0 }

// PieceLen is the uncompressed length of a piece.
func (r *Reader) PieceLen(object, piece int) int { return 0 }

// Piece returns a piece as it is stored: one zstd frame if compressed, the plain
// bytes if not.
func (r *Reader) Piece(object, piece int) (enc []byte, compressed bool, err error) {
	return nil, false, errors.New("under construction")
}

// AppendPiece appends the plain bytes of a piece to dst.
func (r *Reader) AppendPiece(dst []byte, object, piece int) ([]byte, error) {
	return nil, errors.New("under construction")
}

// Object returns random access to the plain bytes of one object.
func (r *Reader) Object(object int) *io.SectionReader { return nil }
