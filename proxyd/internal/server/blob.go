package server

import (
	"fmt"
	"io"
	"net/http"
	"strconv"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// blob answers a wire.BlobRequest: documents from memory, layers as a stream
// from the registry.
func (s *Server) blob(w *response, r *http.Request, rec *record) error {
	var req wire.BlobRequest
	if err := s.decode(w, r, &req); err != nil {
		return err
	}
	rec.ref = req.Ref
	ctx := r.Context()
	img, err := s.cfg.Registry.Image(ctx, req.Ref, ocispec.Platform{}, req.Credentials)
	if err != nil {
		return err
	}
	rec.digest = img.Manifest.Digest
	if b := document(img, req.Digest); b != nil {
		if int64(len(b.Bytes)) != req.Size {
			return invalid(fmt.Sprintf("the blob has %d bytes", len(b.Bytes)))
		}
		blobType(w, req.Size)
		_, err := w.Write(b.Bytes)
		return err
	}
	desc := layerDescriptor(img, req.Digest)
	switch {
	case desc == nil:
		return &wire.Error{Code: wire.CodeNotFound, Message: "the image has no such blob"}
	case desc.Size != req.Size:
		return invalid(fmt.Sprintf("the blob has %d bytes", desc.Size))
	}
	release, ok := s.bundles.take()
	if !ok {
		return busy("too many transfers are under way")
	}
	defer release()
	rc, err := s.cfg.Registry.Blob(ctx, req.Ref, *desc, req.Credentials)
	if err != nil {
		return err
	}
	defer rc.Close()
	blobType(w, desc.Size)
	// With fewer bytes than announced net/http closes the connection, and the
	// worker knows that the blob is not whole.
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, rc, make([]byte, writeChunk))
	return err
}

func blobType(w http.ResponseWriter, size int64) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
}

func document(img *registry.Image, d toc.Digest) *registry.Blob {
	switch {
	case img.Manifest.Digest == d:
		return &img.Manifest
	case img.Config.Digest == d:
		return &img.Config
	case img.Index != nil && img.Index.Digest == d:
		return img.Index
	}
	return nil
}

func layerDescriptor(img *registry.Image, d toc.Digest) *ocispec.Descriptor {
	for i := range img.Layers {
		if img.Layers[i].Digest == d {
			return &img.Layers[i].Descriptor
		}
	}
	return nil
}
