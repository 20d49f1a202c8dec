package delta

import (
	"context"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// Warm opens the connections that the first pull and its first urgent request will
// use, so that each of them takes one round trip.
func (c *Client) Warm(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range []*http.Transport{c.bulk, c.urgent} {
		g.Go(func() error {
			_, err := c.ping(ctx, t)
			return err
		})
	}
	return g.Wait()
}

// KeepWarm keeps the connections open until ctx ends: it warms them at once and at
// each PingEvery, while there was a request within KeepFor. A proxyd that nobody
// uses is left alone. failed, if not nil, is told of failures.
func (c *Client) KeepWarm(ctx context.Context, failed func(error)) {
	c.touch()
	tick := time.NewTicker(c.cfg.PingEvery)
	defer tick.Stop()
	for {
		if time.Since(time.Unix(0, c.used.Load())) < c.cfg.KeepFor {
			if err := c.Warm(ctx); err != nil && ctx.Err() == nil && failed != nil {
				failed(err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
