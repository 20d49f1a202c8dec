// Package meta is what proxyd knows about images, in a database: which layers
// were ingested, which images are complete, the bytes of manifests and
// configs, and in what order the objects of an image are sent.
//
// Everything but traces and profiles can be rebuilt from the registry. Records that name a
// repository say that its registry gave the content to a client that asked for
// it there: content known from one repository is never handed out as part of
// another one that does not have it.
package meta

import (
	"context"
	"errors"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// ErrNotFound is wrapped by the errors of all lookups of what is not there.
var ErrNotFound = errors.New("not found")

// Document is an index, manifest or config, whose Digest was checked.
type Document struct {
	Digest    toc.Digest
	MediaType string
	Bytes     []byte
}

// Layer is an ingested layer, named by its diff ID.
type Layer struct {
	DiffID toc.Digest
	// TOC is the sha256 of the encoded table of contents.
	TOC toc.Digest
	// TOCKey and PackKey are the keys of the encoded TOC (zstd-compressed) and
	// of the pack of its objects in the blob store.
	TOCKey, PackKey string
	// Entries and Objects count those of the TOC; Bytes is the sum of the sizes
	// of Objects.
	Entries, Objects int
	Bytes            int64
}

// LayerUse is when a layer was last of use.
type LayerUse struct {
	DiffID          toc.Digest
	TOCKey, PackKey string // as of Layer
	Used            time.Time
	Manifests       []toc.Digest // of the complete images that have it
}

// LayerBlob is a layer as a registry has it: DiffID was computed from the
// bytes of the blob.
type LayerBlob struct {
	Digest toc.Digest
	Size   int64
	DiffID toc.Digest
}

// Image is an image of a repository all of whose layers are ingested.
type Image struct {
	Repo     string // "host/repo"
	Manifest toc.Digest
	Config   toc.Digest
	Layers   []ImageLayer // from the lowest to the top
}

// ImageLayer names a layer of an image.
type ImageLayer struct {
	Blob, DiffID toc.Digest
}

// Tag is a tag that some client asked for.
type Tag struct {
	Repo string // "host/repo"
	Name string
	// Digest is what the tag pointed to at Seen: an index or a manifest.
	Digest toc.Digest
	Seen   time.Time
}

// Resolved is what a tag last led to for a platform.
type Resolved struct {
	Repo, Tag string
	Platform  string // os/arch[/variant]
	Manifest  toc.Digest
}

// Patch is a patch that makes one object from another.
type Patch struct {
	Old, New toc.Digest
	Key      string // of its blob; "" if the patch is not worth keeping
	Size     int64  // of the blob
	Used     time.Time
}

// Store is the database. All methods may be called at the same time, by
// several processes if the database allows it. Put methods replace what is there;
// putting the same twice is no error.
type Store interface {
	// Layer returns the layer with the diff ID.
	Layer(ctx context.Context, diffID toc.Digest) (*Layer, error)
	// LayerBlob returns what is known about the blob of a layer.
	LayerBlob(ctx context.Context, blob toc.Digest) (*LayerBlob, error)
	// PutLayer records a layer and the blob it was read from at once.
	PutLayer(ctx context.Context, l *Layer, b *LayerBlob) error
	// DeleteLayer forgets a layer, its blobs, and that images with it are complete.
	DeleteLayer(ctx context.Context, diffID toc.Digest) error

	// TouchLayers notes that layers were of use, as putting them does. Those that are
	// not there are left out.
	TouchLayers(ctx context.Context, diffIDs []toc.Digest, at time.Time) error
	// LayerUses returns all layers, those first that were not of use for longest.
	LayerUses(ctx context.Context) ([]LayerUse, error)
	// RemoveLayer does as DeleteLayer if the layer was not of use since then, and
	// remembers it until it is put again or ForgetRemoved is called: its files are to
	// be deleted.
	RemoveLayer(ctx context.Context, diffID toc.Digest, since time.Time) (removed bool, err error)
	// RemovedLayers returns those that RemoveLayer remembers, with their keys.
	RemovedLayers(ctx context.Context) ([]LayerUse, error)
	// ForgetRemoved tells that the files are gone.
	ForgetRemoved(ctx context.Context, diffID toc.Digest) error

	// Image returns the image if it is complete.
	Image(ctx context.Context, repo string, manifest toc.Digest) (*Image, error)
	// PutImage records that an image is complete. It fails with ErrNotFound if
	// one of its layers is not there.
	PutImage(ctx context.Context, img *Image) error

	// Document returns a document that was put for this repository.
	Document(ctx context.Context, repo string, digest toc.Digest) (*Document, error)
	// PutDocument records a document and that the repository has it.
	PutDocument(ctx context.Context, repo string, d *Document) error

	// PutTag records where a tag points.
	PutTag(ctx context.Context, t Tag) error
	// Tags returns the tags seen in a repository, sorted by name.
	Tags(ctx context.Context, repo string) ([]Tag, error)

	// Resolved returns the manifest that a tag last led to for a platform.
	Resolved(ctx context.Context, repo, tag, platform string) (toc.Digest, error)
	// PutResolved records one.
	PutResolved(ctx context.Context, r Resolved) error

	// Patch returns the patch between two objects.
	Patch(ctx context.Context, from, to toc.Digest) (*Patch, error)
	// PutPatch records a patch, or that it was used.
	PutPatch(ctx context.Context, p *Patch) error
	// DeletePatch forgets a patch.
	DeletePatch(ctx context.Context, from, to toc.Digest) error
	// PatchBytes returns the sum of the sizes of all patches.
	PatchBytes(ctx context.Context) (int64, error)
	// StalePatches returns at most n patches, those first that were not used for longest.
	StalePatches(ctx context.Context, n int) ([]Patch, error)

	// Order returns the opaque bytes last put for a manifest under a kind of
	// order ("static", "trace").
	Order(ctx context.Context, manifest toc.Digest, kind string) ([]byte, error)
	// PutOrder records an order of the objects of an image.
	PutOrder(ctx context.Context, manifest toc.Digest, kind string, order []byte) error

	// PutTraces adds traces of an image, and removes what is more than the limits.
	PutTraces(ctx context.Context, manifest toc.Digest, traces []Trace, limits TraceLimits) error
	// Traces returns those of an image, the newest first.
	Traces(ctx context.Context, manifest toc.Digest) ([]Trace, error)
	// PutProfile records the profile of an image of a repository, and removes all
	// but the keep newest ones of it.
	PutProfile(ctx context.Context, repo string, p *Profile, keep int) error
	// Profiles returns those of a repository, the newest first.
	Profiles(ctx context.Context, repo string) ([]Profile, error)

	// Lock waits until no other caller, in any process that shares the database,
	// holds the name, and returns the function that gives it back. The lock is
	// also given back when its process dies.
	Lock(ctx context.Context, name string) (unlock func(), err error)

	// Ping tells whether the database answers.
	Ping(ctx context.Context) error
	// Close closes the database.
	Close() error
}
