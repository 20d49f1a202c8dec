// Package patch makes and applies binary patches: what is sent of a changed object
// to a worker that has an older version of it. It is a part of the protocol and
// imports nothing of ours but the size of a piece.
//
// A patch is a head, empty for most, and one segment for each piece of the new
// object (of PieceSize bytes, the last one shorter). A segment needs the old object
// and the head, and no other segment: segments can be applied in any order, and each
// gives a piece that is checked at once. Neither is compressed here; the streams
// of a segment are made so that zstd does it well.
//
// Two methods make the same segments:
//
//   - HD, for any two files: places where they agree are found by hashes of 16
//     bytes of the old one; between them bytes may differ, as addresses in code do, and
//     the differing bytes are written sparsely.
//   - RD, for ELF files for x86-64 and aarch64: a program in which something was
//     added differs in nearly every reference to what comes after. The head says
//     what moved where, both sides rewrite the references in the old file
//     accordingly, and the segments are made against this relocated file.
//
// # Segment
//
//	segment = 0 literal | 1 sizes ops gaps values literal
//	sizes   = bytes of ops, of gaps, of values (3 uvarints)
//	ops     = *(seek(varint) copy(uvarint) lit(uvarint))
//	gaps    = *uvarint
//	values  = *byte
//
// After 0, the piece stands as it is. After 1, each op moves the position in
// the old file by seek, appends copy bytes from there, by which the position
// advances, and then the next lit bytes of literal. The position starts at the
// offset of the piece in the new file. Of the copied bytes of a segment, counted
// through, each gap bytes are as they were, and to the one after them the next
// byte of values is added (modulo 256). All streams are used up when the piece
// is whole. No op is empty, no segment has more than MaxOps, and with RD the
// copies of a segment change at most 1024 times from one block of 64 KiB of
// the old file to another.
//
// # Head
//
// An empty head means that copies are from the old file as it is. Otherwise:
//
//	head    = version(2) machine flags olds news tables count starts shifts
//	machine = 1 (x86-64) | 2 (aarch64), a byte
//	flags   = 1 byte: 1 conditional jumps, 2 tables of 32-bit offsets
//	olds    = count(uvarint) *(offset address size memory code), ascending by offset
//	news    = count(uvarint) *(offset address size memory)
//	tables  = address and size of .eh_frame_hdr in the old file, or 0 0
//	starts  = count × uvarint: granules of 16 bytes from the start before
//	shifts  = count × varint: difference to the shift before
//
// All numbers are uvarints unless said otherwise. There are 1 to 64 olds and as many
// news, at most 2^18 ranges, and no old file has more than 4 GiB. olds and news say which parts
// of the files are loaded where; code is 1 for parts that hold instructions. Starts
// and shifts are the map: from the granule of each start to that of the next, the
// old file's bytes went to their offset + shift in the new file. What lies before
// the first start went nowhere.
//
// # Relocation
//
// The old file is relocated in blocks of 64 KiB, each on its own; within a
// block, each span is done on its own that lies within one range of the map, one of
// olds, and, after its shift, one of news. No field reaches over the end of its
// span. Fields are rewritten in place, in ascending order. A target is an address
// within memory of olds. If its byte in the old file has a place in the map, and that
// lies in one of news, it moved there; a target in memory behind a part's bytes
// moved with the end of the last part. Other targets, and those below 4096, are left.
// Relative fields are adjusted for the move of their span, too.
//
// x86-64, code: a field of 4 bytes holds the target less the address behind
// it. It follows E8 or E9; with flag 1, 0F 80 to 0F 8F; or a ModRM byte that
// says RIP-relative (mod 0, rm 5) behind one of the opcodes in ripOpcode, or behind
// a byte that has a REX prefix or 0F before it. Bytes before the field are taken
// as they are after earlier fields were rewritten, and only from the span. Looking
// goes on 5 bytes behind the beginning of a field whose target has moved or
// stayed, otherwise at the next byte.
//
// aarch64, code: words at addresses that are multiples of 4. B and BL
// hold a target. ADRP holds the page of one; the rest is in the users of its register, those
// among the next 8 words that are ADD (immediate, 64 bits), or a load or store
// with an unsigned offset, up to the first word that writes the register as
// one of these or another ADRP does. Each user's target gives its
// low bits; the first user's gives the page (without users, the page itself is the
// target).
//
// Data of both: words of 8 bytes at addresses that are multiples of 8
// hold a target; if not, and with flag 2, each half is one of: an offset from the
// beginning of .eh_frame_hdr, within it; or a target in code less its own address.
package patch
