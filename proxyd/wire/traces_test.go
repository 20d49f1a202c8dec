package wire

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func TestTraceRequestRefuses(t *testing.T) {
	item := `{"o":1,"t":5}`
	trace := func(items string) string { return `{"id":"x","items":[` + items + `]}` }
	request := func(traces string) string { return `{"ref":"r","traces":[` + traces + `]}` }
	tests := map[string]string{
		"no ref":          `{"traces":[` + trace(item) + `]}`,
		"no traces":       request(""),
		"many traces":     request(trace(item) + strings.Repeat(","+trace(item), MaxTraces)),
		"no ID":           request(`{"items":[` + item + `]}`),
		"long ID":         request(`{"id":"` + strings.Repeat("x", maxTraceName+1) + `","items":[` + item + `]}`),
		"long group":      request(`{"id":"x","group":"` + strings.Repeat("x", maxTraceName+1) + `","items":[` + item + `]}`),
		"no items":        request(trace("")),
		"many items":      request(trace(item + strings.Repeat(","+item, MaxTraced))),
		"back in time":    request(trace(item + `,{"o":2,"t":4}`)),
		"far in time":     request(trace(`{"o":2,"t":86400001}`)),
		"negative object": request(trace(`{"o":-2,"t":4}`)),
		"negative time":   request(trace(`{"o":2,"t":-4}`)),
	}
	for name, body := range tests {
		if err := DecodeRequest(strings.NewReader(body), "", new(TraceRequest)); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%s: got %v, want an invalid request", name, err)
		}
	}
	if err := DecodeRequest(strings.NewReader(request(trace(item))), "", new(TraceRequest)); err != nil {
		t.Error(err)
	}
}

func FuzzTraceRequest(f *testing.F) {
	f.Add([]byte(`{"ref":"r","traces":[{"id":"x","group":"g","items":[{"o":1,"f":2,"n":3,"t":5}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r TraceRequest
		if err := DecodeRequest(bytes.NewReader(b), "", &r); err != nil {
			if !errors.Is(err, toc.ErrInvalid) {
				t.Fatalf("unexpected class of error: %v", err)
			}
			return
		}
		if len(r.Traces) == 0 || len(r.Traces) > MaxTraces || r.Ref == "" {
			t.Fatalf("accepted %d traces", len(r.Traces))
		}
		for _, tr := range r.Traces {
			if tr.ID == "" || len(tr.Items) == 0 || len(tr.Items) > MaxTraced {
				t.Fatalf("accepted %d items of %q", len(tr.Items), tr.ID)
			}
		}
	})
}
