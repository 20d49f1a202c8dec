// Package pack is the file in which proxyd keeps the objects of one layer, cut
// and compressed once in the form in which they are sent.
//
// # Format
//
//	pack    = "SLPACK" version(2) 0 *frame index trailer
//	frame   = the bytes of a piece: one zstd frame, or as they are
//	index   = frames(uvarint) *length objects(uvarint) *object
//	length  = bytes of the frame << 1 | compressed (uvarint)
//	object  = size(uvarint) *ref
//	ref     = number of the frame, less the expected one (varint)
//	trailer = length of the index (8 bytes, little endian) sha256 of the index
//	          "SLPACKED"
//
// Frames lie back to back from byte 8 on. Objects come in the order of
// TOC.Objects. An object has one ref for each PieceSize of its size, rounded up;
// the expected frame is the one after the ref before, and 0 for the first. Two
// pieces with the same bytes share a frame.
//
// A frame is compressed only if that makes it shorter.
package pack
