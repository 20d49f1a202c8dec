package wire

import (
	"fmt"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// RoutePlan takes a PlanRequest and answers with a bundle of progress and a plan.
const RoutePlan = "/v3/plan"

// PlanRequest asks what a DeltaRequest would bring.
type PlanRequest struct {
	DeltaRequest
	// From, if not empty, are images whose layers are taken for what the worker has, in
	// the place of Have and Partial.
	From []From `json:"from,omitempty"`
	// Top is how many files to name, at most MaxTop.
	Top int `json:"top,omitempty"`
}

// From is an image that the client may pull.
type From struct {
	Ref         string       `json:"ref"`
	Credentials *Credentials `json:"credentials,omitempty"`
}

// Validate checks the limits and what every handler relies on.
func (r *PlanRequest) Validate() error {
	switch {
	case len(r.From) > MaxFrom:
		return fmt.Errorf("request compares with %d images, at most %d are allowed: %w", len(r.From), MaxFrom, toc.ErrInvalid)
	case len(r.From) > 0 && len(r.Have)+len(r.Partial) > 0:
		return fmt.Errorf("request names both what is there and images to compare with: %w", toc.ErrInvalid)
	case r.Top < 0 || r.Top > MaxTop:
		return fmt.Errorf("request wants %d files to be named, at most %d are: %w", r.Top, MaxTop, toc.ErrInvalid)
	case r.HeaderOnly || !r.HaveManifest.IsZero():
		return fmt.Errorf("request is for a part of a bundle: %w", toc.ErrInvalid)
	}
	for _, f := range r.From {
		if f.Ref == "" {
			return fmt.Errorf("request compares with an image without ref: %w", toc.ErrInvalid)
		}
	}
	return r.DeltaRequest.Validate()
}

// Plan says what a bundle would bring.
type Plan struct {
	Manifest toc.Digest `json:"manifest"`
	// Layers of the image, and how many of them are known to the worker.
	Layers      int `json:"layers"`
	KnownLayers int `json:"knownLayers"`
	// LayerBytes is the size of all layers in the registry, and PlainBytes of those
	// that the worker does not know.
	LayerBytes int64 `json:"layerBytes"`
	PlainBytes int64 `json:"plainBytes"`
	// Strange is how many layers the worker has that proxyd does not know: what is in
	// them cannot be left out.
	Strange int `json:"strange"`
	// Total is all of the image; Local is on the worker, Patched comes as patches (of
	// each object at least one piece), and New as it is.
	Total   Share `json:"total"`
	Local   Share `json:"local"`
	Patched Share `json:"patched"`
	New     Share `json:"new"`
	// Metadata is how many bytes come before the contents, and Wire how many in all.
	Metadata int64 `json:"metadata"`
	Wire     int64 `json:"wire"`
	// MostWire is what Wire is if no patch is made in time.
	MostWire int64 `json:"mostWire"`
	// Files are those that take most, by their bytes on the wire.
	Files []PlanFile `json:"files"`
}

// Share is a part of the objects of an image.
type Share struct {
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
	Wire    int64 `json:"wire"`
}

// PlanFile is a file whose contents would be sent. Objects with several names are named
// once.
type PlanFile struct {
	Path  string `json:"path"` // without a leading slash; of MaxPath bytes at most
	Bytes int64  `json:"bytes"`
	Wire  int64  `json:"wire"`
	// Patched from something that the worker has.
	Patched bool `json:"patched,omitempty"`
}

func (p *Plan) validate() error {
	switch {
	case len(p.Files) > MaxTop:
		return invalid("a plan that names %d files", len(p.Files))
	case p.Layers > MaxLayers || p.KnownLayers < 0 || p.KnownLayers > p.Layers || p.Strange < 0:
		return invalid("a plan of %d layers, %d of them known", p.Layers, p.KnownLayers)
	case min(p.LayerBytes, p.PlainBytes, p.Metadata, p.Wire, p.MostWire) < 0:
		return invalid("a plan with negative sizes")
	}
	for _, s := range []Share{p.Total, p.Local, p.Patched, p.New} {
		if s.Objects < 0 || min(s.Bytes, s.Wire) < 0 {
			return invalid("a plan with negative shares")
		}
	}
	return nil
}
