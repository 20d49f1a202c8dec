// Package engine owns everything lazy on a node: the objects, the trees made of
// them, what is known of images and layers, and the streams that bring what is
// missing. The transfer, content, snapshot and service plugins are thin views of it.
package engine

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

var errStub = errors.New("engine: under construction")

// Config of an Engine.
type Config struct {
	// Root is the directory of the snapshotter; the engine keeps objects/, toc/,
	// trees/, lazy/ and state.db in it.
	Root    string
	Proxies []Proxy
	// ReadTimeout: a read of a missing object fails with EIO after it. 0: never.
	ReadTimeout time.Duration
	// HeaderTimeout bounds the time without any sign of life until the header.
	HeaderTimeout time.Duration
}

// Proxy is one proxyd.
type Proxy struct {
	Address    string
	Registries []string // host patterns as of path.Match; first proxy that matches wins
}

// Engine is safe for concurrent use.
type Engine struct{}

// Open starts the engine: it loads the state, resumes what is incomplete and
// starts the lazy file system. Close ends everything but the mounts.
func Open(ctx context.Context, c Config) (*Engine, error) { return nil, errStub }

// Close stops all streams and waits for them. Mounts and the lazyfs process stay.
func (e *Engine) Close() error { return errStub }

// Root returns Config.Root.
func (e *Engine) Root() string { return "" }

// PullRequest asks for an image.
type PullRequest struct {
	// Namespace of containerd, for the status only.
	Namespace string
	Ref       string           // fully qualified
	Platform  ocispec.Platform // wanted
	// Credentials, if not nil, gives those of the client for the host of Ref.
	Credentials func(ctx context.Context, host string) (*wire.Credentials, error)
	// Registry, if not nil, fetches from the registry as the client would: the
	// source of last resort when no proxyd can complete the image. It may be
	// called long after Pull has returned.
	Registry func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	// Ingest, if not nil, is told how far proxyd is with an image it did not know.
	Ingest func(wire.Progress)
}

// Pull is an image whose metadata is local. Its chains are known to the
// snapshotter, its layers to the content store; its contents are on the way.
type Pull struct {
	// Target is what the reference resolves to: index or manifest.
	Target ocispec.Descriptor
	// Manifest and Config of the platform. Manifest == Target without an index.
	Manifest, Config ocispec.Descriptor
	Layers           []ocispec.Descriptor
	DiffIDs          []digest.Digest
}

// ErrNotAccelerated is wrapped by every error of Pull after which the image should
// be pulled as stock containerd does. Its text says why.
var ErrNotAccelerated = errors.New("not accelerated")

// Pull gets the metadata of an image from a proxyd and starts the stream of its
// contents, which goes on after Pull returns and after ctx ends. Errors wrap
// ErrNotAccelerated unless ctx ended.
//
// Until Release nothing of the image is collected by Sweep.
func (e *Engine) Pull(ctx context.Context, r PullRequest) (*Pull, error) { return nil, errStub }

// Blob returns the bytes of Target, Manifest or Config.
func (p *Pull) Blob(d digest.Digest) ([]byte, bool) { return nil, false }

// Release ends the protection from Sweep. The caller has made snapshots by then.
func (p *Pull) Release() {}

// Plain records that an image was pulled without acceleration, and why.
func (e *Engine) Plain(namespace, ref string, why error) {}

// Virtual tells whether d is a layer blob that the node can produce without
// having it, and its size.
func (e *Engine) Virtual(d digest.Digest) (BlobInfo, bool) { return BlobInfo{}, false }

// BlobInfo is what is known of a virtual blob.
type BlobInfo struct {
	Digest  digest.Digest
	Size    int64
	Created time.Time
}

// WalkVirtual calls fn for each virtual blob until it fails.
func (e *Engine) WalkVirtual(fn func(BlobInfo) error) error { return errStub }

// FetchBlob streams a virtual blob from proxyd or the registry. The caller
// checks the digest.
func (e *Engine) FetchBlob(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	return nil, errStub
}

// ForgetBlob makes d no longer virtual. It tells whether it was.
func (e *Engine) ForgetBlob(d digest.Digest) (bool, error) { return false, errStub }

// HasChain tells whether Lower(chain) can give a root file system.
func (e *Engine) HasChain(chain digest.Digest) bool { return false }

// Lower is a read-only root file system for overlayfs:
// "lowerdir=<uppers>:<Metadata>::<Data[0]>::<Data[1]>", metacopy=on, redirect_dir=on.
type Lower struct {
	// Metadata is the mount point of the EROFS image.
	Metadata string
	// Data are the data-only layers: the objects, and the lazy file system
	// unless Complete.
	Data []string
	// Complete: every object is local.
	Complete bool
}

// Lower mounts the tree of a chain if it is not mounted, building it if it has
// gone, and returns it. The mount stays until Sweep finds the chain dead.
func (e *Engine) Lower(ctx context.Context, chain digest.Digest) (Lower, error) {
	return Lower{}, errStub
}

// Usage is what the chain takes on the disk, without what parent (or "") takes:
// bytes and inodes of local objects that are not in parent, and of its tree.
func (e *Engine) Usage(ctx context.Context, chain, parent digest.Digest) (size, inodes int64, err error) {
	return 0, 0, errStub
}

// OnComplete registers fn to be called (from a goroutine of the engine, one call
// at a time) when all objects of a chain have become local: time to remount.
func (e *Engine) OnComplete(fn func(ctx context.Context, chain digest.Digest)) {}

// Sweep drops chains that are not in live, with their trees, TOCs and objects,
// unless a pull in progress needs them.
func (e *Engine) Sweep(ctx context.Context, live []digest.Digest) error { return errStub }

// Mode of an image.
const (
	ModeDelta = "delta"
	ModePlain = "plain"
)

// ImageStatus is the state of one pulled image.
type ImageStatus struct {
	Namespace, Ref string
	Target         digest.Digest
	Mode           string // ModeDelta or ModePlain
	Reason         string // of ModePlain, or of the last failure of a stream
	Proxy          string // address of the proxyd that served it
	WireBytes      int64  // received for this image, headers included
	Objects        int64  // of the tree
	ObjectsLocal   int64
	Bytes          int64 // of the tree's objects
	BytesLocal     int64
	Rate           float64 // bytes a second on the wire, now; 0 when complete
	RoundTrips     int64   // requests made for it
	Complete       bool
	Pulled         time.Time
	Ready, Done    time.Duration // from the start of the pull to its metadata / its last object
}

// Status lists all images, or those with the given ref if it is not "".
func (e *Engine) Status(ref string) []ImageStatus { return nil }

// Wait calls report (about ten times a second and at the end) until every image
// with ref is complete. Unknown refs give errdefs.ErrNotFound.
func (e *Engine) Wait(ctx context.Context, ref string, report func(ImageStatus) error) error {
	return errStub
}

// Proxies lists the proxies in the order of the configuration.
func (e *Engine) Proxies() []Proxy { return nil }

// Ping measures a round trip to a proxy on a warm connection.
func (e *Engine) Ping(ctx context.Context, address string) (rtt time.Duration, p wire.Ping, err error) {
	return 0, wire.Ping{}, errStub
}
