// Package patches makes patches between objects ahead of need and keeps them, so that
// the next worker gets better ones than can be made while it waits.
//
// A patch is made in the background, by few workers of low priority, from a [Job]: the
// planner hands in what it would have sent if it had been there, and [Cache.Moved]
// what a tag that moved will make workers ask for. Before a patch is kept, the object
// is made from the very bytes that will be sent, and its digest checked. Patches that
// save too little are remembered as such.
//
// # Format
//
// A patch is a blob:
//
//	patch   = "SLPATCH" version(1) *frame index trailer
//	frame   = the head and segments of package proxyd/wire/patch, one after the
//	          other; one zstd frame, or as they are
//	index   = frames(uvarint) *(length entries(uvarint) *entry)
//	length  = bytes of the frame << 1 | compressed (uvarint), crc32c (4 bytes)
//	entry   = bytes << 1 | plain (uvarint)
//	trailer = length of the index (8 bytes, little endian) sha256 of the index
//
// The first entry of the first frame is the head, which may be empty; the others are
// the pieces of the new object, in order: segments, or, if plain, the pieces
// themselves. Frames lie back to back.
package patches
