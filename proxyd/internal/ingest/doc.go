// Package ingest turns the layers of images into tables of contents and packs.
//
// A layer is read once, in a pipeline whose stages run at the same time and hold
// a bounded number of buffers:
//
//	source → fromtar: TOC, contents → pieces → compress → pack → commit
//
// Nothing is visible before the whole layer was read and its digest, its diff ID
// and its size were found right. What is committed stays: an ingest that fails, or
// whose process dies, begins again with the layers that are not done.
package ingest
