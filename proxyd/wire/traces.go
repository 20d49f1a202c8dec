package wire

import (
	"fmt"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// RouteTraces takes a TraceRequest and answers with a TraceResponse as JSON.
const RouteTraces = "/v3/traces"

// Limits of reports.
const (
	MaxTraces = 32      // in one request
	MaxTraced = 1 << 16 // items of one trace
	// MaxTraceTime in milliseconds is later than any start, and that of its group.
	MaxTraceTime = 24 * 3600 * 1000
	maxTraceName = 128 // bytes of an ID or the name of a group
)

// TraceRequest reports what containers of one image read while they started. It
// is authorized as a pull of the image is.
type TraceRequest struct {
	// Ref is "host/repo@sha256:<manifest digest>".
	Ref         string       `json:"ref"`
	Platform    string       `json:"platform"`
	Credentials *Credentials `json:"credentials,omitempty"`
	// Ticket, if there are no Credentials, is Header.Ticket of a bundle of this image.
	Ticket string  `json:"ticket,omitempty"`
	Traces []Trace `json:"traces"`
}

// Trace is one start of a container.
type Trace struct {
	// ID is random. A trace that is reported again counts once.
	ID string `json:"id"`
	// Group, if not "", names containers that were started together; the times of
	// Items count from the start of the first of them.
	Group string `json:"group,omitempty"`
	// Partial: only what readers waited for was seen.
	Partial bool `json:"partial,omitempty"`
	// Items in the order of their first read.
	Items []TraceItem `json:"items"`
}

// TraceItem is an object that was read, or a run of its pieces.
type TraceItem struct {
	// Object is an index into the image's object list (see doc.go).
	Object uint32 `json:"o"`
	// First piece, and how many; 0 are all from First on.
	First  uint32 `json:"f,omitempty"`
	Pieces uint32 `json:"n,omitempty"`
	// Time of the first read, in milliseconds.
	Time uint32 `json:"t"`
}

// TraceResponse is the answer: the traces of the request are stored.
type TraceResponse struct {
	Accepted int `json:"accepted"`
}

// Validate checks the limits and what every handler relies on.
func (r *TraceRequest) Validate() error {
	if r.Ref == "" {
		return fmt.Errorf("request without ref: %w", toc.ErrInvalid)
	}
	if len(r.Traces) == 0 || len(r.Traces) > MaxTraces {
		return fmt.Errorf("request reports %d traces, 1 to %d are allowed: %w", len(r.Traces), MaxTraces, toc.ErrInvalid)
	}
	for i := range r.Traces {
		if err := r.Traces[i].validate(); err != nil {
			return fmt.Errorf("trace %d: %w: %w", i, err, toc.ErrInvalid)
		}
	}
	return nil
}

func (t *Trace) validate() error {
	switch {
	case t.ID == "" || len(t.ID) > maxTraceName || len(t.Group) > maxTraceName:
		return fmt.Errorf("its ID has %d bytes and its group %d, 1 to %d and up to %d are allowed", len(t.ID), len(t.Group), maxTraceName, maxTraceName)
	case len(t.Items) == 0 || len(t.Items) > MaxTraced:
		return fmt.Errorf("it has %d items, 1 to %d are allowed", len(t.Items), MaxTraced)
	}
	last := uint32(0)
	for i, it := range t.Items {
		if it.Time < last || it.Time > MaxTraceTime {
			return fmt.Errorf("item %d is at %d ms after one at %d ms", i, it.Time, last)
		}
		last = it.Time
	}
	return nil
}
