package wire

import (
	"github.com/starlight-delta/starlight/proxyd/wire/patch"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Limits of the protocol. A reader refuses what is over them before it
// allocates anything.
const (
	MaxRequest   = 16 << 20 // bytes of a request, uncompressed
	MaxHeader    = 4 << 20  // bytes of a header, progress or error payload
	MaxBlob      = 16 << 20 // bytes of an index, manifest or config
	MaxTOCFrame  = 256 << 20
	MaxData      = 4 << 20 // bytes of a data frame's contents, uncompressed
	MaxDataIndex = 64 << 10
	MaxCount     = 4096    // entries in the index of a data frame
	MaxLocal     = 1 << 16 // ranges of a local frame
	maxLocal     = 1 << 20 // bytes of its payload
	MaxFill      = 1 << 20 // bytes after the answer to a ping
	MaxLayers    = 512
	MaxHave      = 4096
	MaxPartial   = 1024
	maxWorker    = 64   // bytes of DeltaRequest.Worker, and of the name of a request
	MaxAfter     = 32   // requests in DeltaRequest.After
	MaxAsk       = 4096 // ranges in one ObjectsRequest
	MaxFrom      = 16   // images in PlanRequest.From
	MaxTop       = 256  // files in a Plan
	MaxPath      = 1024 // bytes of a path in a Plan
)

// longest is how many bytes an entry of a data frame may have.
func longest(k Kind) int {
	switch k {
	case KindBase:
		return patch.MaxHead
	case KindSegment:
		return patch.MaxSegment
	}
	return toc.PieceSize
}
