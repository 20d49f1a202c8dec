// Command bench measures Starlight beside overlayfs in one run: starts over a
// link, the speed of a complete image on disk, and memory while pulling. It prints
// tables and writes the figures as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/measure"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// results is what the JSON file holds.
type results struct {
	Time   time.Time       `json:"time"`
	Mbit   float64         `json:"mbit"`
	RTT    float64         `json:"rttSeconds"`
	Starts []measure.Start `json:"starts,omitempty"`
	Disk   []diskResult    `json:"disk,omitempty"`
	Memory *memoryResult   `json:"memory,omitempty"`
}

type bench struct {
	parts, images, out, logs string
	mbit                     float64
	rtt                      time.Duration
	runs                     int

	bin, stock tools.Binaries
	res        results
}

func main() {
	var b bench
	flag.StringVar(&b.parts, "parts", "starts,disk,memory", "what to measure")
	flag.StringVar(&b.images, "images", strings.Join(corpus.AllNames, ","), "images of the corpus for the starts")
	flag.StringVar(&b.out, "out", "bench.json", "file for the figures")
	flag.Float64Var(&b.mbit, "mbit", 100, "rate of the link, Mbit/s")
	flag.DurationVar(&b.rtt, "rtt", 100*time.Millisecond, "round-trip time of the link")
	flag.IntVar(&b.runs, "runs", 5, "repetitions of each disk measurement; the median counts")
	flag.StringVar(&b.logs, "logs", "", "directory to keep the logs of containerd in")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.bin, err = tools.Product(); err != nil {
		return err
	}
	if b.stock, err = tools.Stock(ctx); err != nil {
		return err
	}
	b.res = results{Time: time.Now(), Mbit: b.mbit, RTT: b.rtt.Seconds()}
	for _, p := range []struct {
		name string
		run  func(context.Context, *site) error
	}{{"starts", b.starts}, {"disk", b.disk}, {"memory", b.memory}} {
		if !strings.Contains(","+b.parts+",", ","+p.name+",") {
			continue
		}
		if perr := b.inSite(ctx, p.run); perr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", p.name, perr))
		}
	}
	text, jerr := json.MarshalIndent(b.res, "", "  ")
	if jerr != nil {
		return errors.Join(err, jerr)
	}
	return errors.Join(err, os.WriteFile(b.out, append(text, '\n'), 0o644))
}

// site is a world with a proxyd.
type site struct {
	*sandbox.World
	ours sandbox.NodeConfig
}

func (b *bench) inSite(ctx context.Context, f func(context.Context, *site) error) (err error) {
	w, err := sandbox.New(ctx, wan.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	p, err := w.StartProxyd(ctx, sandbox.ProxydConfig{Binary: b.bin.Proxyd})
	if err != nil {
		return err
	}
	if b.logs != "" {
		defer func() {
			err = errors.Join(err, os.WriteFile(filepath.Join(b.logs, "proxyd.log"), []byte(p.Log.String()), 0o600))
		}()
	}
	return f(ctx, &site{w, sandbox.NodeConfig{Name: "starlight", Binaries: b.bin, Proxies: []string{p.Address}}})
}

// push pushes both versions of an image.
func (s *site) push(ctx context.Context, name string) ([]corpus.Image, []string, error) {
	if err := corpus.Build(ctx, os.Stderr, name); err != nil {
		return nil, nil, err
	}
	var images []corpus.Image
	var refs []string
	for _, tag := range corpus.Tags {
		im, err := corpus.Load(name, tag)
		if err != nil {
			return nil, nil, err
		}
		ref, err := s.Push(ctx, im.Layout, name, tag)
		if err != nil {
			return nil, nil, err
		}
		images, refs = append(images, im), append(refs, ref)
	}
	return images, refs, nil
}

// starts pulls and starts both versions of each image on nodes of their own, so
// that no image profits from another.
func (b *bench) starts(ctx context.Context, s *site) (err error) {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer func() { err = errors.Join(err, t.Flush()) }() // what there is, after a failure too
	fmt.Fprintf(t, "image\tpull\toverlayfs ready\tStarlight ready\tratio\toverlayfs MB\tStarlight MB\tuntil ready\ttrips\t\n")
	for name := range strings.SplitSeq(b.images, ",") {
		images, refs, err := s.push(ctx, name)
		if err != nil {
			return err
		}
		warm := s.ours
		warm.Name = name
		if err := measure.Warm(ctx, s.World, warm, refs...); err != nil {
			return err
		}
		if err := s.Link.Set(wan.Config{Down: b.mbit, Up: b.mbit, RTT: b.rtt}); err != nil {
			return err
		}
		var got [2][]measure.Start
		for side, conf := range []sandbox.NodeConfig{{Name: "stock", Binaries: b.stock}, s.ours} {
			conf.Name += "-" + name
			n, err := s.StartNode(ctx, conf)
			if err != nil {
				return err
			}
			for i, im := range images {
				run := sandbox.Run{
					Ref: refs[i], ID: fmt.Sprintf("%s-%d", name, i), Argv: im.Ready.Argv,
					Snapshotter: []string{measure.Overlayfs, measure.Starlight}[side],
				}
				fmt.Fprintf(os.Stderr, "%s with %s\n", run.Ref, run.Snapshotter)
				m, err := measure.Once(ctx, s.World, n, run, im.Ready, nil)
				if err != nil {
					return err
				}
				m.Image, m.Tag = name, im.Tag
				got[side] = append(got[side], m)
				b.res.Starts = append(b.res.Starts, m)
			}
			if b.logs != "" {
				if err := os.WriteFile(filepath.Join(b.logs, conf.Name+".log"), []byte(n.Log()), 0o600); err != nil {
					return err
				}
			}
			if err := n.Close(); err != nil {
				return err
			}
		}
		for i, o := range got[0] {
			m := got[1][i]
			fmt.Fprintf(t, "%s\t%s\t%.2f s\t%.2f s\t%.1fx\t%.1f\t%.1f\t%.1f\t%d/%d\t\n", name, []string{"fresh", "update"}[i],
				o.Ready, m.Ready, o.Ready/m.Ready, float64(o.Bytes)/1e6, float64(m.Bytes)/1e6, float64(m.ReadyBytes)/1e6, m.PullTrips, m.Trips)
		}
	}
	return nil
}
