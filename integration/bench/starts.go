package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/measure"
	"github.com/starlight-delta/starlight/integration/internal/needs"
	"github.com/starlight-delta/starlight/integration/internal/report"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/system"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// most is how long one cell may take.
const most = 20 * time.Minute

// starts measures all cells, each image in a world of its own.
func (b *bench) starts(ctx context.Context) error {
	var systems []system.System
	for _, name := range b.systems {
		s, err := b.system(ctx, name)
		if err == nil {
			systems = append(systems, s)
		} else if err := b.fail(report.Record{System: name}, err); err != nil {
			return err
		}
	}
	return b.perImage(ctx, func(versions []corpus.Image) (err error) {
		todo := b.cells(systems, versions[0].Name)
		if len(todo) == 0 {
			return nil
		}
		w, err := sandbox.New(ctx, wan.Config{})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.Close()) }()
		if err := b.needs(ctx, w, versions); err != nil {
			return err
		}
		published := make(map[string][]string)
		for _, s := range systems {
			if !slices.ContainsFunc(todo, func(c cell) bool { return c.system == s }) {
				continue
			}
			say("%s: publish for %s", versions[0].Name, s.Name())
			refs, err := s.Publish(ctx, w, versions)
			if err != nil {
				if err := b.fail(report.Record{Image: versions[0].Name, System: s.Name()}, err); err != nil {
					return err
				}
				continue
			}
			published[s.Name()] = refs
		}
		for i, c := range todo {
			refs, ok := published[c.system.Name()]
			if !ok {
				continue
			}
			if err := b.start(ctx, w, c, i, versions, refs); err != nil {
				return err
			}
		}
		return nil
	})
}

// cell is what one node measures.
type cell struct {
	system system.System
	link   report.Link
	run    int
}

// cells lists those of an image. Systems take turns, so that a machine that
// becomes slower does so for all of them.
func (b *bench) cells(systems []system.System, image string) []cell {
	var all []cell
	for run := range b.runs {
		for _, l := range b.links {
			for _, s := range systems {
				if !b.has(func(r report.Record) bool {
					return r.Start != nil && r.Image == image && r.System == s.Name() && *r.Link == l && r.Run == run && r.Phase == report.Update
				}) {
					all = append(all, cell{s, l, run})
				}
			}
		}
	}
	return all
}

// needs records what the starts of an image read.
func (b *bench) needs(ctx context.Context, w *sandbox.World, versions []corpus.Image) error {
	for i, v := range versions {
		r := report.Record{Image: v.Name, Phase: report.Phases[i]}
		n, err := needs.Of(ctx, w, b.stock, v)
		if err != nil {
			err = b.fail(r, err)
		} else {
			r.Needs = n
			err = b.log.Add(r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// start measures a cell; only errors that concern all cells are returned.
func (b *bench) start(ctx context.Context, w *sandbox.World, c cell, i int, versions []corpus.Image, refs []string) error {
	r := report.Record{Image: versions[0].Name, System: c.system.Name(), Link: &c.link, Run: c.run}
	name := fmt.Sprintf("%s-%d", r.System, i)
	limited, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	// Before the node, which opens connections: what TCP learned of another link
	// would slow it down on this one.
	if err := w.Link.Set(wan.Config{Down: c.link.Mbit, Up: c.link.Mbit, RTT: time.Duration(c.link.RTT * float64(time.Second))}); err != nil {
		return err
	}
	n, err := c.system.Node(limited, w, r.Image, name)
	if err == nil {
		err = b.phases(limited, w, n, &r, versions, refs)
		if err != nil && ctx.Err() == nil {
			err = errors.Join(err, b.keep(fmt.Sprintf("%s-%s-%v", r.Image, name, c.link), n))
		}
		err = errors.Join(err, n.Stop())
	}
	// Whatever went wrong, the next cell begins with nothing.
	err = errors.Join(err, w.Link.Set(wan.Config{}), w.Link.Edge.KillAll())
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	return b.fail(r, err)
}

func (b *bench) phases(ctx context.Context, w *sandbox.World, n *system.Node, r *report.Record, versions []corpus.Image, refs []string) error {
	for i, v := range versions {
		r.Phase = report.Phases[i]
		m, err := measure.Once(ctx, w.Link, measure.Subject{
			Node: n, Ref: refs[i], ID: containerID(v.Name, i), Ready: v.Ready,
		})
		if err != nil {
			return err
		}
		done := *r
		done.Start = &m
		if err := b.log.Add(done); err != nil {
			return err
		}
		say("%-22s %-7s %-20s pull %6.2f s  ready %6.2f s  %7.2f MB", r.System, r.Phase, r.Link, m.Pull, m.Ready, float64(m.Bytes)/1e6)
	}
	return nil
}

// containerID is unique on the machine: runc's directory of containers is that of
// all containerds.
func containerID(name string, i int) string { return fmt.Sprintf("%s-%d-%d", name, i, os.Getpid()) }

// keep writes the logs of a node on which something failed.
func (b *bench) keep(name string, n *system.Node) error {
	name = strings.NewReplacer("/", "-", " ", "", ",", "-").Replace(name)
	errs := []error{os.WriteFile(filepath.Join(b.dir, name+".log"), []byte(n.Log()), 0o600)}
	for other, p := range n.Others {
		errs = append(errs, os.WriteFile(filepath.Join(b.dir, name+"-"+other+".log"), []byte(p.Log.String()), 0o600))
	}
	return errors.Join(errs...)
}
