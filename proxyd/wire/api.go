package wire

import (
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Version of the protocol. It is in the routes and in the preamble of every
// response. Routes of a version a proxyd does not speak answer 404.
const Version = 3

// Routes. Requests are POSTed as JSON, zstd-compressed with
// Content-Encoding: zstd if they are larger than a packet.
const (
	RouteDelta   = "/v3/delta"   // DeltaRequest  → delta bundle (BundleType)
	RouteObjects = "/v3/objects" // ObjectsRequest → delta bundle without header
	RouteBlob    = "/v3/blob"    // BlobRequest   → the raw bytes of a layer, config or manifest
	RoutePing    = "/v3/ping"    // GET → Ping as JSON, and FillParam
)

// FillParam is a parameter of RoutePing: about so many bytes of white space, at most MaxFill,
// shall follow the answer. A connection on which many bytes have gone begins its next
// answer at the rate that they had, and not with ten packets for the first round trip.
const FillParam = "fill"

// BundleType is the media type of a delta bundle.
const BundleType = "application/vnd.starlight.bundle.v2"

// Credentials are what the worker's client gave for the registry of the wanted
// image. proxyd tries them upstream and forgets them.
type Credentials struct {
	Username string `json:"username,omitempty"`
	// Secret is a password, or an identity token if Username is empty.
	Secret string `json:"secret,omitempty"`
}

// Have is one layer whose TOC the worker holds.
type Have struct {
	DiffID toc.Digest `json:"diffID"`
	// Missing is nil if the worker has (or is about to receive by another
	// request) every object of the layer; otherwise bit i (LSB first) is set if
	// it lacks object i of TOC.Objects.
	Missing []byte `json:"missing,omitempty"`
	// Coming is nil if everything that is not missing is there; otherwise bit i is
	// set if object i is not yet: patches cannot be made against it.
	Coming []byte `json:"coming,omitempty"`
}

// Partial is an object of more than one piece that the worker has in part.
type Partial struct {
	Object toc.Digest `json:"object"`
	// Pieces has bit i (LSB first) set if the worker has piece i. proxyd leaves
	// those out, if it sends the object as pieces.
	Pieces []byte `json:"pieces"`
}

// DeltaRequest asks for an image.
type DeltaRequest struct {
	// Ref is the fully qualified reference, "host/repo:tag" or "host/repo@sha256:…".
	Ref string `json:"ref"`
	// Platform in the form os/arch[/variant] picks a manifest of an index.
	Platform    string       `json:"platform"`
	Credentials *Credentials `json:"credentials,omitempty"`
	// Ticket, if there are no Credentials, is Header.Ticket of an earlier answer with
	// this image; Ref has its digest.
	Ticket  string    `json:"ticket,omitempty"`
	Have    []Have    `json:"have,omitempty"`
	Partial []Partial `json:"partial,omitempty"`
	// HaveManifest: the worker holds index, manifest and config of this
	// manifest digest; blob frames are left out. Set when a pull resumes.
	HaveManifest toc.Digest `json:"haveManifest,omitzero"`
	// Worker, if not "", is a random name that all requests of one worker have, so
	// that images that it pulls at the same time become useful together.
	Worker string `json:"worker,omitempty"`
	// Request, if not "", is a random name of this request, and After are the names of
	// those that the same worker made before it and has not had the answers of. What is
	// planned in answer to them is left out: they are requests for one joint plan.
	Request string   `json:"request,omitempty"`
	After   []string `json:"after,omitempty"`
	// Local asks for a local frame.
	Local bool `json:"local,omitempty"`
	// HeaderOnly asks for no data frames.
	HeaderOnly bool `json:"headerOnly,omitempty"`
	// Kinds of entries that the worker takes, besides plain.
	Kinds Kinds `json:"kinds,omitempty"`
}

// ObjectsRequest asks for single objects of an image at once.
type ObjectsRequest struct {
	// Ref is "host/repo@sha256:<manifest digest>".
	Ref         string       `json:"ref"`
	Platform    string       `json:"platform"`
	Credentials *Credentials `json:"credentials,omitempty"`
	// Ticket, if there are no Credentials, is Header.Ticket of an earlier answer with
	// this image; Ref has its digest.
	Ticket string `json:"ticket,omitempty"`
	// Stream, if not "", is Header.Stream of a bundle under way to this worker:
	// proxyd leaves what it answers here out of the rest of that stream.
	Stream string `json:"stream,omitempty"`
	// Objects are what a reader waits for. proxyd may answer with more than is asked
	// for: small neighbours that will be read next.
	Objects []Range `json:"objects"`
	// Exact asks for what is named only.
	Exact bool `json:"exact,omitempty"`
}

// Range is an object, or some successive pieces of it.
type Range struct {
	Object uint32 `json:"object"` // index into the image's object list, see doc.go
	First  uint32 `json:"first,omitempty"`
	// Pieces is their number; 0: all from First to the end.
	Pieces uint32 `json:"pieces,omitempty"`
}

// BlobRequest asks for a blob of the image as the registry has it.
type BlobRequest struct {
	Ref         string       `json:"ref"`
	Credentials *Credentials `json:"credentials,omitempty"`
	Digest      toc.Digest   `json:"digest"`
	Size        int64        `json:"size"`
}

// Ping is the answer of RoutePing.
type Ping struct {
	Version  string `json:"version"` // of the proxyd binary
	Protocol int    `json:"protocol"`
	// Registries are the hosts with a port that the configuration of proxyd names.
	// A worker that knows of an image only what containerd keeps of its origin
	// knows no port.
	Registries []string `json:"registries,omitempty"`
}

// Header is the first frame of a delta bundle that carries an image.
type Header struct {
	// Stream names this response in ObjectsRequest.Stream.
	Stream string `json:"stream"`
	// Ticket lets this worker ask for more of this image without credentials, for a
	// time that proxyd decides. It is a secret.
	Ticket string `json:"ticket,omitempty"`
	// Plan is the digest of everything that determines the data frames: equal
	// plans have equal bytes.
	Plan toc.Digest `json:"plan"`
	// Blobs are index (if there is one), manifest and config, in this order;
	// a blob frame follows for each unless the request had HaveManifest.
	Blobs []Blob `json:"blobs"`
	// Layers of the image from the lowest to the top.
	Layers []Layer `json:"layers"`
	// Bases are diff IDs of the request's Have, to which patches refer.
	Bases []toc.Digest `json:"bases,omitempty"`
	// After are those of the request's After that this answer rests on: TOCs and objects
	// that they bring are left out. A worker that does not get them asks again.
	After []string `json:"after,omitempty"`
	// Taken are objects, in ascending order, that this bundle brings although another
	// one to this worker was to: they are needed sooner here.
	Taken []uint32 `json:"taken,omitempty"`
	// Objects and Bytes that the data frames will bring (uncompressed bytes).
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
	// TotalObjects and TotalBytes of the image's tree.
	TotalObjects int   `json:"totalObjects"`
	TotalBytes   int64 `json:"totalBytes"`
}

// Blob describes an index, manifest or config.
type Blob struct {
	MediaType string     `json:"mediaType"`
	Digest    toc.Digest `json:"digest"`
	Size      int64      `json:"size"`
}

// Layer describes a layer of the image.
type Layer struct {
	DiffID    toc.Digest `json:"diffID"`
	Digest    toc.Digest `json:"digest"` // of the blob in the registry
	Size      int64      `json:"size"`   // of the blob in the registry
	MediaType string     `json:"mediaType"`
	// TOC is the sha256 of the layer's encoded TOC. Where the manifest names one (see
	// toc.Annotation), it must be that.
	TOC toc.Digest `json:"toc"`
	// Sent tells that a TOC frame for this layer follows. It is false if the
	// request's Have names the layer.
	Sent bool `json:"sent"`
	// Base, if not nil, says that the frame holds a patch of this TOC; the
	// request's Have names its layer.
	Base *Base `json:"base,omitempty"`
}

// Base is a TOC that the worker holds and another is made from.
type Base struct {
	DiffID toc.Digest `json:"diffID"`
	// TOC is the sha256 of the encoded TOC. A worker that holds another one asks
	// again without naming the layer.
	TOC toc.Digest `json:"toc"`
}

// Progress says why the header is not there yet. It is sent about every
// second while proxyd ingests.
type Progress struct {
	Stage string `json:"stage"` // "ingest", or "plan"
	Done  int64  `json:"done"`  // bytes of layers read from the registry, or of objects counted
	Total int64  `json:"total"`
}

// Error codes, in Error.Code and in the body of responses that are not 200.
const (
	CodeInvalid      = "invalid"      // 400: the request is malformed
	CodeUnauthorized = "unauthorized" // 401: the registry refuses these credentials
	CodeDenied       = "denied"       // 403: proxyd is not configured for this registry
	CodeNotFound     = "not_found"    // 404: the registry has no such image, platform or blob
	CodeUnsupported  = "unsupported"  // 422: an image of a shape that proxyd does not serve
	CodeBusy         = "busy"         // 503: over a limit; try again
	CodeUpstream     = "upstream"     // 502: the registry does not answer
	CodeInternal     = "internal"     // 500
)

// Error is the body of every response that is not 200, and of an error frame.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Error returns the message.
func (e *Error) Error() string { return e.Code + ": " + e.Message }

// ProgressInterval is the longest time that passes between two frames while a
// proxyd works on an answer. A worker that hears nothing for several intervals
// may take the proxyd for dead.
const ProgressInterval = time.Second
