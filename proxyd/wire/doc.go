// Package wire is the protocol between a worker and proxyd: routes, requests,
// the delta bundle, its limits, encoder and decoder. Both sides import it, and
// it imports nothing of ours but toc and patch below it.
//
// # Delta bundle
//
// One request is answered by one streamed bundle:
//
//	bundle   = preamble *frame
//	preamble = "SLDB" version(1 byte) 0 0 0
//	frame    = type(1 byte) flags(1 byte) length(uvarint) payload(length bytes)
//
// Flag 1 (compressed) says that the payload is one zstd frame with a window of at
// most 8 MiB; all other flags are zero. The limits of this package hold for the
// payload on the wire and for what it decodes to. Frames come in this order, and have
// the types 1 (progress) to 10 (local); a reader refuses any other:
//
//	progress*                      JSON Progress; while an unknown image is ingested
//	retry                          ends the bundle: proxyd is ready now, ask again
//	or
//	header                         JSON Header
//	blob × Header.Blobs            raw bytes of index, manifest, config (not on resume)
//	toc × Header.Layers with Sent  encoded TOC of the layer, or a patch
//	local?                         if DeltaRequest.Local: what to read ahead
//	data*                          contents, most urgent first
//	end                            ends the bundle: everything promised was sent
//
// and in the answer to a PlanRequest:
//
//	progress*                      as above, and while it is counted
//	plan                           ends the bundle: JSON Plan
//
// An error frame (JSON Error) may take the place of any frame and ends the
// bundle. A bundle without end, retry, plan or error was cut off; nothing may follow
// these. There are either all blobs of the header, in its order and each of its Size,
// or none; retry and end have no payload. The bundle that answers an ObjectsRequest
// has data frames and end (or error) only.
//
// Requests that a worker makes while it waits for the headers of others name those
// (DeltaRequest.After): proxyd plans one after the other, and leaves out of each what
// those before it bring, so that two pulls at once never get the same object twice.
// The worker takes the headers in this order. A header names those it rests on; a
// worker that did not take one of them asks again.
//
// Why retry: nobody shall wait for a header for as long as an ingest takes. With the
// first progress frame it is known that this answer brings nothing; the worker takes
// those after it, and asks again with a fresh inventory.
//
// # Tables of contents
//
// The payload of a toc frame is the encoded TOC of the layer, or, if the layer has a Base,
//
//	patch = size(uvarint) *(length(uvarint) segment)
//
// which makes the encoded TOC, of size bytes, from that of the base: with one
// segment of package patch (method HD, no head) for each PieceSize bytes. Either
// way the result has the digest Layer.TOC. A proxyd picks bases among the request's Have.
//
// # Object list
//
// Objects are named by their index in the image's object list: the Objects of
// the TOCs of the image's layers, from the lowest to the top, each digest where it
// first appears. Both sides derive it from the TOCs alone.
//
// # What is local
//
//	local = *(object(varint) [first(uvarint) pieces(uvarint)])
//
// are ranges of objects that a start of the image is expected to read, in that order,
// and that this bundle does not bring, as the worker has them: while the rest is on its
// way, it may read them into its page cache. object is the distance to the successor
// of the object before, shifted left by one; its lowest bit says that it is not the whole
// object. This is a hint like the order of sending.
//
// # Data frames
//
//	data    = index contents
//	index   = count(uvarint) *entry
//	entry   = kind(1 byte) object(uvarint) piece(uvarint) length(uvarint)
//	        | 1 object(uvarint) layer(uvarint) base(uvarint) length(uvarint)
//	contents = the bytes of all entries, one after the other
//
// The index is never compressed; the contents are one zstd frame if the flag is
// set. The kinds of entries are:
//
//	0 plain    a piece of an object as it is: piece number (0 for objects of at most
//	           PieceSize bytes), and its length, which the TOC gives too
//	1 base     what later segments of the object are to be applied to: object number
//	           base in the TOC of layer number layer of the header's bases; the
//	           contents are the head of the patch, and may be empty
//	2 segment  a segment of a patch (package patch), which makes a piece
//	3 x86      a piece as of 0, filtered (see [Filter])
//	4 arm64    the same for the other machine
//
// A reader refuses kinds it does not know, a piece of a length that the TOC does
// not give, a segment without a base before it in the bundle, and a base that is
// not among what the request says to be there. A writer sends kinds other than
// plain only if the request names them, and no patches in a bundle without header.
// The pieces of one object come in any order, as plain ones and as segments, may be
// interleaved with other objects, and may come more than once. A base holds for
// its object until the next one. A data frame has at least one entry, no entry
// but a base is empty, none is longer than PieceSize, patch.MaxSegment if it is a segment,
// patch.MaxHead if it is a base, and the lengths add up to the contents.
//
// Every piece is checked against its sha256 in the TOC before anybody can read
// it, and every object against its own before it is complete.
//
// # Plans
//
// A PlanRequest is a DeltaRequest that is answered with numbers: what the bundle would
// bring that answers it. It is authorized as that is. In place of what the worker has it
// may name images, which the client must be allowed to pull as well: their layers are
// taken for all that there is. proxyd makes the bundle and counts it, so the numbers are
// those of a pull whose link leaves time for all patches; it may have to ingest the
// images first.
//
// # Traces
//
// A TraceRequest reports what containers of an image read while they started: objects
// by their index in the object list, large ones by pieces, with times. Who may pull an
// image may report on it. Reports are hints for the order of sending: nothing in them
// is handed to anybody, and a proxyd may ignore them.
package wire
