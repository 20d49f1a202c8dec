package toc

import "fmt"

const (
	// AnnotationPrefix is that of annotations of layers, in manifests, whose values are
	// the sha256 of the encoded TOC of the layer. The version of the format follows:
	// another version gives another TOC, and says nothing about this one.
	AnnotationPrefix = "io.containerd.starlight.toc."
	// Annotation is the one of the version that Encode writes.
	Annotation = AnnotationPrefix + "v2"
)

// Named returns the digest of a layer's TOC that the annotations of the layer name, or
// zero if they name none of this version. What is no digest gives an error that wraps
// ErrInvalid.
func Named(annotations map[string]string) (Digest, error) {
	s, ok := annotations[Annotation]
	if !ok {
		return Digest{}, nil
	}
	d, err := ParseDigest(s)
	if err == nil && d.IsZero() {
		err = invalid("the digest is zero")
	}
	if err != nil {
		return Digest{}, fmt.Errorf("annotation %s: %w", Annotation, err)
	}
	return d, nil
}
