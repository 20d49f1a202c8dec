package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/dedup"
	"github.com/starlight-delta/starlight/integration/internal/report"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/system"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// Links between worker and proxyd when bytes are counted: what proxyd computes at once
// must be there sooner than what is sent without it, so it depends on the link.
var (
	bytesLink = wan.Config{Down: 100, Up: 100, RTT: 20 * time.Millisecond}
	slowLink  = wan.Config{Down: 10, Up: 10, RTT: 60 * time.Millisecond} // updates only
)

// bytes compares what is sent for each image.
func (b *bench) bytes(ctx context.Context) error {
	return b.perImage(ctx, func(versions []corpus.Image) error {
		image := versions[0].Name
		if b.has(func(r report.Record) bool { return r.Bytes != nil && r.Image == image && r.Phase == report.Update }) {
			return nil
		}
		all, err := others(ctx, versions)
		if err != nil {
			return err
		}
		if err := b.sent(ctx, versions, all); err != nil {
			return err
		}
		for i, phase := range report.Phases {
			if err := b.log.Add(report.Record{Image: image, Phase: phase, Bytes: &all[i]}); err != nil {
				return err
			}
			say("%-15s %-7s layers %8.1f kB  files %8.1f kB  at once %8.1f kB (slow link %8.1f kB)  precomputed %8.1f kB", image, phase,
				kilo(all[i].Registry), kilo(all[i].Dedup), kilo(all[i].AtOnce.Total()), kilo(all[i].Slow.Total()), kilo(all[i].Precomputed.Total()))
		}
		return nil
	})
}

func kilo(n int64) float64 { return float64(n) / 1e3 }

// others computes what others would send.
func others(ctx context.Context, versions []corpus.Image) ([]report.Bytes, error) {
	var all []report.Bytes
	var old *dedup.Image
	for _, v := range versions {
		im, err := dedup.Load(v)
		if err != nil {
			return nil, fmt.Errorf("%s:%s: %w", v.Name, v.Tag, err)
		}
		alone, err := im.Gzip(ctx, old)
		if err != nil {
			return nil, err
		}
		all = append(all, report.Bytes{Files: im.Files, Registry: im.Layers(old), Dedup: alone})
		old = im
	}
	return all, nil
}

// sent lets workers ask for all versions, and counts what proxyd sends.
func (b *bench) sent(ctx context.Context, versions []corpus.Image, all []report.Bytes) (err error) {
	w, err := sandbox.New(ctx, bytesLink)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	c := puller{world: w, system: system.Starlight{Binaries: b.bin, AtOnce: true}, image: versions[0].Name}
	if c.refs, err = c.system.Publish(ctx, w, versions); err != nil {
		return err
	}
	if err := c.proxyd(ctx, "slow", func(address string, _ *sandbox.Proxyd) error {
		sent, err := c.pulls(ctx, address, "slow", slowLink)
		for i := 1; i < len(sent); i++ { // the first is no update
			all[i].Slow = sent[i]
		}
		return err
	}); err != nil {
		return err
	}
	return c.proxyd(ctx, "fast", func(address string, p *sandbox.Proxyd) error {
		sent, err := c.pulls(ctx, address, "at-once", bytesLink)
		if err == nil {
			err = system.Idle(ctx, p.Process)
		}
		if err != nil {
			return err
		}
		for i := range sent {
			all[i].AtOnce = sent[i]
		}
		sent, err = c.pulls(ctx, address, "precomputed", bytesLink)
		for i := range sent {
			all[i].Precomputed = sent[i]
		}
		return err
	})
}

// puller counts what proxyds send for the versions of an image.
type puller struct {
	world  *sandbox.World
	system system.Starlight
	image  string
	refs   []string
	tap    *tap
}

// proxyd runs f with a proxyd that has read the versions and computed nothing, and the
// address at which workers find it.
func (c *puller) proxyd(ctx context.Context, name string, f func(address string, p *sandbox.Proxyd) error) (err error) {
	p, err := c.system.Proxyd(ctx, c.world, c.image, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	if c.tap, err = newTap(ctx, c.world.Link.Edge, p.Address); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.tap.Close()) }()
	return f(c.tap.address, p)
}

// pulls pulls the versions one after the other on a new node, the updates over link, and
// returns what was sent for each.
func (c *puller) pulls(ctx context.Context, address, name string, link wan.Config) (all []report.Sent, err error) {
	n, err := c.system.Worker(ctx, c.world, address, name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Remove(), c.world.Link.Set(bytesLink)) }()
	for _, ref := range c.refs {
		c.tap.reset()
		if err := n.Pull(ctx, ref); err != nil {
			return nil, err
		}
		if _, err := n.Wait(ctx, ref); err != nil {
			return nil, err
		}
		s, err := c.tap.sent()
		if err != nil {
			return nil, err
		}
		all = append(all, s)
		if err := c.world.Link.Set(link); err != nil {
			return nil, err
		}
	}
	return all, nil
}
