// Package objects is the content-addressed store of one node: the contents of
// the regular files of all images, each kept once under its sha256.
//
//	<root>/objects/aa/<62 hex digits>   complete, 0400
//	<root>/partial/<64 hex digits>      arriving; the offsets are those of the object
//
// The objects directory is a data-only layer of overlayfs, so that a name in it
// must never be seen before its content is whole and checked: everything is
// written in partial/ and renamed. The inode stays the same, hence a file that
// was opened while it was partial goes on being right.
//
// Objects of more than one piece (toc.PieceSize) are checked piece by piece, so
// that readers ([Store.Wait]) need not wait for the end, and as a whole before
// the last piece is shown to anybody.
//
// What has arrived of them outlives the process: [Store.Adopt] hashes its pieces and
// goes on from there.
//
// Nothing is made durable one by one: [Store.Sync] does it for all. After a
// crash, the objects of images that were not complete need [Store.Verify].
//
// Locks are taken in the order Store.dirs, Store.mu, entry.fileMu, entry.mu.
package objects
