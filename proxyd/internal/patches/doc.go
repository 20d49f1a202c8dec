// Package patches makes patches between objects ahead of need and keeps them, so that
// the next worker gets better ones than can be made while it waits.
//
// A patch is made in the background, by few workers of low priority, for
// what a stream has asked for in vain ([Cache.Patch]), and for what a tag that has moved will
// make workers ask for ([Cache.Seen]). Before a patch is kept, the object
// is made from the very bytes that will be sent, and its digest checked. Patches that
// save too little are remembered as such.
//
// # Format
//
// A patch is a blob:
//
//	patch   = "SLPATCH" version(2) head *segment index trailer
//	head    = as package proxyd/wire/patch makes it, and not compressed
//	segment = one zstd frame, or as package proxyd/wire/patch makes it
//	index   = length pieces(uvarint) *(length size(uvarint))
//	length  = bytes that are stored << 1 | compressed (uvarint), crc32c (4 bytes)
//	trailer = length of the index (8 bytes, little endian) sha256 of the index
//
// The index has the head and then the segments, in the order of the pieces, and of
// each segment the size of what it decodes to: 0 if the piece is not patched, which
// takes no bytes. Head and segments lie back to back.
package patches
