// Package trace records what containers open and read while they start, and keeps
// the records until they are reported.
//
// A [Recorder] is told of every access and costs a map look-up for each; it is
// bounded in memory and leaves out what is too much. What it has seen is a
// [Trace], which a [Store] keeps as a file.
package trace

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Trace is what one container read while it started.
type Trace struct {
	ID string `json:"id"`
	// Image is the manifest, Name the repository "host/repo" that it came from.
	Image    toc.Digest `json:"image"`
	Name     string     `json:"name"`
	Platform string     `json:"platform"`
	// Group of containers that are started together, and how long after the first
	// of them this one began.
	Group string        `json:"group,omitempty"`
	Delay time.Duration `json:"delay,omitempty"`
	// Snapshot that was traced, and the chain it rests on. "" if Partial.
	Snapshot string        `json:"snapshot,omitempty"`
	Chain    digest.Digest `json:"chain,omitempty"`
	Started  time.Time     `json:"started"`
	Duration time.Duration `json:"duration"`
	// Partial: only reads that had to wait were seen.
	Partial bool `json:"partial,omitempty"`
	// Left is the number of accesses that were left out for want of room.
	Left int64 `json:"left,omitempty"`
	// Objects in the order in which they were first read or opened.
	Objects []Object `json:"objects"`
}

// Object is what was read of an object.
type Object struct {
	// Index in the object list of the image, see package wire.
	Index  uint32     `json:"index"`
	Digest toc.Digest `json:"digest"`
	Size   int64      `json:"size"`
	// After is when it was first read, since the start.
	After time.Duration `json:"after"`
	// Wait is how long readers waited for it.
	Wait time.Duration `json:"wait,omitempty"`
	// Ranges that were read, by offset, which neither overlap nor touch. None: it
	// was opened only.
	Ranges []Range `json:"ranges,omitempty"`
}

// Range is a part of an object.
type Range struct {
	Off   int64         `json:"off"`
	N     int64         `json:"n"`
	After time.Duration `json:"after"`
}

// Bytes is how much of the object was read.
func (o *Object) Bytes() (n int64) {
	for _, r := range o.Ranges {
		n += r.N
	}
	return n
}

// Read tells how many objects were read, not only opened, and how many bytes of them.
func (t *Trace) Read() (objects int, bytes int64) {
	for i := range t.Objects {
		if n := t.Objects[i].Bytes(); n > 0 {
			objects++
			bytes += n
		}
	}
	return objects, bytes
}

// Wait is how long readers waited, all together.
func (t *Trace) Wait() (d time.Duration) {
	for i := range t.Objects {
		d += t.Objects[i].Wait
	}
	return d
}
