package registry

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Image is an image as its registry describes it. All digests are checked.
// It is shared and must not be modified.
type Image struct {
	// Name is "host/repo", without tag and digest.
	Name string
	// Tag is the tag that was asked for; "" if it was a digest.
	Tag string
	// Index is what the reference points to if that is not a manifest.
	Index *Blob
	// Inner are the indexes on the way from Index to Manifest, if they are nested.
	Inner    []Blob
	Manifest Blob
	Config   Blob
	// Layers from the lowest to the top.
	Layers []Layer
}

// Blob is a document: its descriptor and its bytes.
type Blob struct {
	MediaType string
	Digest    toc.Digest
	Bytes     []byte
}

// Layer is a layer of an image: its blob in the registry, and the digest of its
// uncompressed tar as the config has it.
type Layer struct {
	Descriptor ocispec.Descriptor
	Digest     toc.Digest // of Descriptor
	DiffID     toc.Digest
}

// Size is the sum of the sizes of the blobs of the layers.
func (i *Image) Size() (n int64) {
	for _, l := range i.Layers {
		n += l.Descriptor.Size
	}
	return n
}
