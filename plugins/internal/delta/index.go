package delta

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Index makes the proxyd know an image: it asks for it, without its contents, until
// the answer is more than progress.
func (c *Client) Index(ctx context.Context, r wire.DeltaRequest, progress func(wire.Progress) error) error {
	r.HeaderOnly = true
	for {
		retry, err := c.indexOnce(ctx, r, progress)
		if err != nil || !retry {
			return err
		}
	}
}

func (c *Client) indexOnce(ctx context.Context, r wire.DeltaRequest, progress func(wire.Progress) error) (retry bool, err error) {
	b, err := c.Delta(ctx, r)
	if err != nil {
		return false, err
	}
	defer b.Close()
	for {
		f, err := b.Next()
		switch {
		case errors.Is(err, io.EOF):
			return false, fmt.Errorf("proxy %s: the answer ends without a header: %w", c.cfg.Address, ErrProtocol)
		case err != nil:
			return false, err
		}
		switch f.Type {
		case wire.FrameProgress:
			if err := progress(*f.Progress); err != nil {
				return false, err
			}
		case wire.FrameRetry:
			return true, nil
		default:
			return false, nil // it plans: the image is known
		}
	}
}
