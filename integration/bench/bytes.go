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

// bytesLink is between worker and proxyd when bytes are counted: what proxyd computes at
// once must be there sooner than what is sent without it, so it depends on the link.
var bytesLink = wan.Config{Down: 100, Up: 100, RTT: 20 * time.Millisecond}

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
			say("%-15s %-7s layers %8.1f kB  files %8.1f kB  at once %8.1f kB  precomputed %8.1f kB", image, phase,
				kilo(all[i].Registry), kilo(all[i].Dedup), kilo(all[i].AtOnce.Total()), kilo(all[i].Precomputed.Total()))
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

// sent lets workers ask a proxyd for all versions, twice, and counts what it sends.
func (b *bench) sent(ctx context.Context, versions []corpus.Image, all []report.Bytes) (err error) {
	w, err := sandbox.New(ctx, bytesLink)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	ours := system.Starlight{Binaries: b.bin, AtOnce: true}
	refs, err := ours.Publish(ctx, w, versions)
	if err != nil {
		return err
	}
	p, err := ours.Proxyd(ctx, w, versions[0].Name, "proxyd")
	if err != nil {
		return err
	}
	tap, err := newTap(ctx, w.Link.Edge, p.Address)
	if err != nil {
		return err
	}
	w.Closing(tap)
	for round, name := range []string{"at-once", "precomputed"} {
		n, err := ours.Worker(ctx, w, tap.address, name)
		if err != nil {
			return err
		}
		for i, ref := range refs {
			tap.reset()
			if err := n.Pull(ctx, ref); err != nil {
				return err
			}
			if _, err := n.Wait(ctx, ref); err != nil {
				return err
			}
			s, err := tap.sent()
			if err != nil {
				return err
			}
			*[]*report.Sent{&all[i].AtOnce, &all[i].Precomputed}[round] = s
		}
		if err := n.Remove(); err != nil {
			return err
		}
		if err := system.Idle(ctx, p.Process); err != nil {
			return err
		}
	}
	return nil
}
