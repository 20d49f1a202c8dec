package delta

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func TestPlan(t *testing.T) {
	good := &wire.Plan{Wire: 5, Files: []wire.PlanFile{{Path: "a"}}}
	progress := func(w *wire.Writer) error { return w.Progress(wire.Progress{Stage: "plan\x1b", Done: 1, Total: 2}) }
	for name, tt := range map[string]struct {
		write []func(*wire.Writer) error
		is    error // nil: a plan
	}{
		"plan":    {[]func(*wire.Writer) error{progress, progress, func(w *wire.Writer) error { return w.Plan(good) }}, nil},
		"cut off": {[]func(*wire.Writer) error{progress}, wire.ErrTruncated},
		"retry":   {[]func(*wire.Writer) error{progress, (*wire.Writer).Retry}, toc.ErrInvalid},
		"header":  {[]func(*wire.Writer) error{func(w *wire.Writer) error { return w.Header(&wire.Header{}) }}, toc.ErrInvalid},
		"long path": {[]func(*wire.Writer) error{func(w *wire.Writer) error {
			return w.Plan(&wire.Plan{Files: []wire.PlanFile{{Path: strings.Repeat("x", wire.MaxPath+1)}}})
		}}, toc.ErrInvalid},
		"bytes after": {[]func(*wire.Writer) error{func(w *wire.Writer) error { return w.Plan(good) }, (*wire.Writer).End}, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			c := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", wire.BundleType)
				out := wire.NewWriter(w)
				for _, f := range tt.write {
					if err := f(out); err != nil {
						t.Error(err)
					}
				}
			}), Config{})
			told := 0
			p, err := c.Plan(t.Context(), wire.PlanRequest{DeltaRequest: request}, func(p wire.Progress) error {
				if strings.ContainsRune(p.Stage, '\x1b') {
					t.Errorf("unfit for a terminal: %q", p.Stage)
				}
				told++
				return nil
			})
			if !errors.Is(err, tt.is) || tt.is == nil && (err != nil || p.Wire != 5 || told != 2) {
				t.Errorf("got %+v, %v, progress %d times; want %v", p, err, told, tt.is)
			}
		})
	}
}
