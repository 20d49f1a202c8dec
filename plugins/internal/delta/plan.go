package delta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Plan asks what the answer to a request would bring.
func (c *Client) Plan(ctx context.Context, r wire.PlanRequest, progress func(wire.Progress) error) (*wire.Plan, error) {
	b, err := c.bundle(ctx, c.bulk, wire.RoutePlan, r, wire.NewReader)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	for {
		f, err := b.next()
		if err != nil {
			return nil, err
		}
		switch f.Type {
		case wire.FrameProgress:
			if err := progress(wire.Progress{Stage: clean(f.Progress.Stage), Done: f.Progress.Done, Total: f.Progress.Total}); err != nil {
				return nil, err
			}
		case wire.FramePlan:
			for i := range f.Plan.Files {
				if p := f.Plan.Files[i].Path; !utf8.ValidString(p) || len(p) > wire.MaxPath {
					return nil, invalid("a plan with a path of %d bytes", len(p))
				}
			}
			if _, err := b.Next(); !errors.Is(err, io.EOF) {
				return nil, fmt.Errorf("proxy %s: the answer goes on after the plan: %w", c.cfg.Address, ErrProtocol)
			}
			return f.Plan, nil
		default:
			return nil, invalid("%s frame instead of a plan", f.Type)
		}
	}
}
