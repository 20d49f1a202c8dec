package delta

import (
	"context"
	"net/http/httptrace"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// fill is what goes over a new connection ahead of need. Headers of images with many
	// files have as much.
	fill = 256 << 10
	// fillEvery is how often that may be: some links lose their connections all the time,
	// and each byte costs.
	fillEvery = time.Hour
)

// Warm opens the connections that the first pull and its first urgent request will
// use, so that each of them takes one round trip. On a new one for the first, something
// is sent at once, so that the kernel of proxyd knows what it carries when the header of an
// image comes: else that takes another round trip for each doubling of ten packets.
func (c *Client) Warm(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_, err := c.ping(ctx, c.urgent, 0)
		return err
	})
	g.Go(func() error {
		opened := false
		trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { opened = !i.Reused }}
		_, err := c.ping(httptrace.WithClientTrace(ctx, trace), c.bulk, 0)
		last, now := c.filled.Load(), time.Now()
		if err == nil && opened && now.Sub(time.Unix(0, last)) > fillEvery && c.filled.CompareAndSwap(last, now.UnixNano()) {
			_, err = c.ping(ctx, c.bulk, fill)
		}
		return err
	})
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
