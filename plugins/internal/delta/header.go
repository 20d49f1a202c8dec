package delta

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// ErrOtherTOC is wrapped when the proxyd's TOC of a layer is not the one that the
// worker holds, so that the two would number objects differently, or when a TOC
// cannot be made from one that the worker holds: ask again without naming the layer
// in DeltaRequest.Have.
var ErrOtherTOC = errors.New("proxyd holds another TOC of a layer")

// maxTOCs caps the encoded TOCs of one bundle; 1 GiB of them would be an image
// with some ten million files.
const maxTOCs = wire.MaxTOCFrame

// maxStream is more than any proxyd needs to name a stream.
const maxStream = 256

// Document is an index, manifest or config: checked bytes and their descriptor.
type Document struct {
	ocispec.Descriptor
	Bytes []byte
}

// Metadata is everything of a bundle before the data frames, checked: from the
// digest of the request, if it has one, down to the TOCs.
type Metadata struct {
	Header *wire.Header
	// Index is nil if the reference names a manifest.
	Index            *Document
	Manifest, Config *Document
	// ImageManifest and ImageConfig are Manifest and Config, parsed.
	ImageManifest ocispec.Manifest
	ImageConfig   ocispec.Image
	// Unnamed is how many layers have a TOC that the manifest does not name: that it is
	// that of the layer is proxyd's word.
	Unnamed int
	// TOCs that were sent, and how they were encoded, by diff ID.
	TOCs    map[toc.Digest]*toc.TOC
	Encoded map[toc.Digest][]byte
}

// Target is what the reference resolves to: Index or Manifest.
func (m *Metadata) Target() *Document {
	if m.Index != nil {
		return m.Index
	}
	return m.Manifest
}

// Held is what the worker has, and the header of a bundle is compared with. What
// the request did not name need not be there.
type Held struct {
	// Blob returns index, manifest or config. Needed with DeltaRequest.HaveManifest.
	Blob func(d toc.Digest) ([]byte, error)
	// TOC returns the sha256 of the encoded TOC of a layer in DeltaRequest.Have.
	// Nil: the TOCs are not compared.
	TOC func(diffID toc.Digest) (toc.Digest, bool)
	// Encoded returns the encoded TOC of a layer in DeltaRequest.Have, from which others
	// are patched. Needed if the request names layers.
	Encoded func(diffID toc.Digest) ([]byte, error)
	// Rests tells whether the answers to these requests, which DeltaRequest.After named,
	// were taken. If not, ErrRetry says to ask without them. Nil: none was.
	Rests func(requests []string) bool
}

// ReadHeader reads a bundle up to its first data frame and checks it against the
// request and itself. progress, if not nil, is told what the proxyd does meanwhile.
//
// Malformed, inconsistent and wrong answers give errors that wrap toc.ErrInvalid,
// ErrRetry and ErrOtherTOC say what to do next, and Retryable tells of all others.
func ReadHeader(b *Bundle, req wire.DeltaRequest, held Held, progress func(wire.Progress)) (*Metadata, error) {
	m, err := readHeader(b, req, held, progress)
	if err != nil && !errors.Is(err, ErrRetry) {
		return nil, fmt.Errorf("header of %q: %w", req.Ref, err)
	}
	return m, err
}

func readHeader(b *Bundle, req wire.DeltaRequest, held Held, progress func(wire.Progress)) (*Metadata, error) {
	h, err := awaitHeader(b, progress)
	if err != nil {
		return nil, err
	}
	if len(h.After) > 0 && (held.Rests == nil || !held.Rests(h.After)) {
		return nil, ErrRetry
	}
	if err := checkLayers(h, req, held); err != nil {
		return nil, err
	}
	docs := make([]*Document, len(h.Blobs))
	resumed := !req.HaveManifest.IsZero()
	for i, blob := range h.Blobs {
		if docs[i], err = readBlob(b, blob, resumed, held); err != nil {
			return nil, err
		}
	}
	m := &Metadata{Header: h}
	if err := m.checkDocuments(docs, req); err != nil {
		return nil, err
	}
	if err := m.checkNamed(); err != nil {
		return nil, err
	}
	if err := m.readTOCs(b, held); err != nil {
		return nil, err
	}
	b.streaming()
	return m, nil
}

func awaitHeader(b *Bundle, progress func(wire.Progress)) (*wire.Header, error) {
	for {
		f, err := b.next()
		if err != nil {
			return nil, err
		}
		switch f.Type {
		case wire.FrameProgress:
			f.Progress.Stage = clean(f.Progress.Stage)
			if progress != nil {
				progress(*f.Progress)
			}
		case wire.FrameRetry:
			return nil, ErrRetry
		case wire.FrameHeader:
			return f.Header, nil
		default:
			return nil, invalid("%s frame before the header", f.Type)
		}
	}
}

// next is Next for those who still expect frames.
func (b *Bundle) next() (wire.Frame, error) {
	f, err := b.Next()
	if errors.Is(err, io.EOF) {
		err = wire.ErrTruncated
	}
	return f, err
}

// checkLayers compares the header's layers with what the request named.
func checkLayers(h *wire.Header, req wire.DeltaRequest, held Held) error {
	if len(h.Stream) > maxStream || clean(h.Stream) != h.Stream {
		return invalid("malformed name of the stream")
	}
	have := make(map[toc.Digest]bool, len(req.Have))
	for _, l := range req.Have {
		have[l.DiffID] = true
	}
	tocs := make(map[toc.Digest]toc.Digest, len(h.Layers))
	for _, l := range h.Layers {
		other, again := tocs[l.DiffID]
		switch {
		case again && other != l.TOC:
			return invalid("layer %s has two TOCs", l.DiffID)
		case l.Base != nil && (!have[l.Base.DiffID] || held.Encoded == nil):
			return invalid("the TOC of layer %s is made from that of %s, which we have not", l.DiffID, l.Base.DiffID)
		case !again && !l.Sent && !have[l.DiffID]:
			return invalid("the TOC of layer %s is not sent, and we have it not", l.DiffID)
		case !l.Sent && have[l.DiffID] && held.TOC != nil:
			if ours, ok := held.TOC(l.DiffID); !ok || ours != l.TOC {
				return fmt.Errorf("layer %s: %w", l.DiffID, ErrOtherTOC)
			}
		}
		tocs[l.DiffID] = l.TOC
	}
	return nil
}

// readBlob gets the bytes of an index, manifest or config from its frame or, when
// a pull resumes, from what the worker holds, and checks them.
func readBlob(b *Bundle, want wire.Blob, resumed bool, held Held) (*Document, error) {
	var payload []byte
	if resumed {
		if held.Blob == nil {
			return nil, invalid("blob %s is needed", want.Digest)
		}
		var err error
		if payload, err = held.Blob(want.Digest); err != nil {
			return nil, fmt.Errorf("blob %s, which we said to have: %w", want.Digest, err)
		}
	} else {
		f, err := b.next()
		switch {
		case err != nil:
			return nil, err
		case f.Type != wire.FrameBlob:
			return nil, invalid("%s frame instead of blob %s", f.Type, want.Digest)
		}
		payload = bytes.Clone(f.Payload)
	}
	if sum := toc.Digest(sha256.Sum256(payload)); sum != want.Digest || int64(len(payload)) != want.Size {
		return nil, invalid("blob %s of %d bytes is %s of %d", want.Digest, want.Size, sum, len(payload))
	}
	return &Document{Bytes: payload, Descriptor: ocispec.Descriptor{
		MediaType: want.MediaType, Digest: digest.Digest(want.Digest.String()), Size: want.Size,
	}}, nil
}

// readTOCs reads the TOC frames that the header announced.
func (m *Metadata) readTOCs(b *Bundle, held Held) error {
	m.TOCs, m.Encoded = make(map[toc.Digest]*toc.TOC), make(map[toc.Digest][]byte)
	var total int
	for _, l := range m.Header.Layers {
		if !l.Sent {
			continue
		}
		f, err := b.next()
		switch {
		case err != nil:
			return err
		case f.Type != wire.FrameTOC:
			return invalid("%s frame instead of the TOC of layer %s", f.Type, l.DiffID)
		}
		encoded := f.Payload
		if l.Base != nil {
			if encoded, err = patched(f.Payload, l, held); err != nil {
				return err
			}
		}
		if total += len(encoded); total > maxTOCs {
			return invalid("TOCs of more than %d bytes", maxTOCs)
		}
		if sum := toc.Digest(sha256.Sum256(encoded)); sum != l.TOC {
			return invalid("the TOC of layer %s is %s, announced was %s", l.DiffID, sum, l.TOC)
		}
		if m.TOCs[l.DiffID] != nil {
			continue // a layer that occurs twice
		}
		if l.Base == nil {
			encoded = bytes.Clone(encoded)
		}
		t, err := toc.Decode(encoded)
		if err != nil {
			return fmt.Errorf("TOC of layer %s: %w", l.DiffID, err)
		}
		if t.DiffID != l.DiffID {
			return invalid("the TOC of layer %s is one of %s", l.DiffID, t.DiffID)
		}
		m.TOCs[l.DiffID], m.Encoded[l.DiffID] = t, encoded
	}
	return nil
}

// patched makes the encoded TOC of a layer from its base.
func patched(payload []byte, l wire.Layer, held Held) ([]byte, error) {
	base, err := held.Encoded(l.Base.DiffID)
	if err != nil {
		return nil, fmt.Errorf("TOC of layer %s, which we said to have: %w: %w", l.Base.DiffID, ErrOtherTOC, err)
	}
	if toc.Digest(sha256.Sum256(base)) != l.Base.TOC {
		return nil, fmt.Errorf("layer %s, base of %s: %w", l.Base.DiffID, l.DiffID, ErrOtherTOC)
	}
	encoded, err := wire.ApplyTOCPatch(base, payload)
	if err == nil && toc.Digest(sha256.Sum256(encoded)) != l.TOC {
		err = invalid("the patch makes another TOC")
	}
	if err != nil {
		return nil, fmt.Errorf("TOC of layer %s from that of %s: %w: %w", l.DiffID, l.Base.DiffID, ErrOtherTOC, err)
	}
	return encoded, nil
}

func isManifest(mediaType string) bool { return images.IsManifestType(mediaType) }

func isIndex(mediaType string) bool { return images.IsIndexType(mediaType) }

func isConfig(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageConfig || mediaType == images.MediaTypeDockerSchema2Config
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, toc.ErrInvalid)...)
}
