package meta

import (
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Trace is a reported start of a container.
type Trace struct {
	// ID is the reporter's; a trace that is put again is the same one.
	ID string
	// Reporter is an opaque name of who reported it.
	Reporter string
	Received time.Time
	Bytes    []byte
}

// TraceLimits bound what is kept of each image. The newest are kept.
type TraceLimits struct {
	PerReporter, Total int
}

// Profile is the order of a traced image in a form that its successors can use.
type Profile struct {
	Manifest toc.Digest
	Updated  time.Time
	Bytes    []byte
}
