// Command demo shows what Starlight is for: it puts a registry and proxyd behind
// an emulated link, pulls and starts an image and then its update, first with
// stock overlayfs and then with Starlight, and prints one table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/measure"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/system"
	"github.com/starlight-delta/starlight/integration/internal/tools"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

func main() {
	var d demo
	flag.StringVar(&d.image, "image", "", "reference of your own image (default: an image of the corpus)")
	flag.StringVar(&d.update, "update", "", "reference of its next version")
	flag.StringVar(&d.ready, "ready", "", "when it is ready: log:PATTERN, tcp:PORT, http:PORT/PATH or exit (default: first exposed port, or first output)")
	flag.StringVar(&d.corpus, "corpus", "redis", "image of the corpus: "+strings.Join(corpus.AllNames, ", "))
	flag.Float64Var(&d.mbit, "mbit", 100, "rate of the link, Mbit/s")
	flag.DurationVar(&d.rtt, "rtt", 100*time.Millisecond, "round-trip time of the link")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := d.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

type demo struct {
	image, update, ready, corpus string
	mbit                         float64
	rtt                          time.Duration
}

// imageName is what proxyd's state of the two versions is kept under.
const imageName = "demo"

// version of what is pulled.
type version struct {
	what, ref string
	ready     corpus.Ready
}

func (d *demo) run(ctx context.Context) (err error) {
	bin, err := tools.Product()
	if err != nil {
		return err
	}
	say("preparing stock containerd and a registry (the first time takes minutes)")
	stock, err := tools.Stock(ctx)
	if err != nil {
		return err
	}
	w, err := sandbox.New(ctx, wan.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	versions, err := d.versions(ctx, w)
	if err != nil {
		return err
	}
	say("starting proxyd beside the registry; it reads the images and compresses them, which takes a minute")
	ours := system.Starlight{Binaries: bin}
	refs := make([]string, len(versions))
	for i, v := range versions {
		refs[i] = v.ref
	}
	if err := ours.Teach(ctx, w, imageName, refs, nil); err != nil {
		return err
	}
	if err := w.Link.Set(wan.Config{Down: d.mbit, Up: d.mbit, RTT: d.rtt}); err != nil {
		return err
	}
	say("link: %.0f Mbit/s, %v round trip; look in with: nsenter --net=%s", d.mbit, d.rtt, w.Link.Edge.Path())

	var rows []row
	for _, side := range []struct {
		name string
		sys  system.System
	}{
		{"containerd + overlayfs", system.Overlayfs{Binaries: stock}},
		{"containerd + Starlight", ours},
	} {
		n, err := side.sys.Node(ctx, w, imageName, side.sys.Name())
		if err != nil {
			return err
		}
		for i, v := range versions {
			s, err := measure.Once(ctx, w.Link, measure.Subject{
				Node: n, Ref: v.ref, ID: fmt.Sprintf("demo-%d", i), Ready: v.ready, Report: progress(side.name, v.what),
			})
			if err != nil {
				return fmt.Errorf("%w\n%s", err, lastLines(n.Log()))
			}
			clearLine()
			say("%s, %s: ready after %.2f s", side.name, v.what, s.Ready)
			rows = append(rows, row{side.name, v.what, s})
		}
		if err := n.Remove(); err != nil {
			return err
		}
	}
	return printTable(os.Stdout, fmt.Sprintf("%.0f Mbit/s, %v round trip", d.mbit, d.rtt), versions, rows)
}

// versions fills the registry.
func (d *demo) versions(ctx context.Context, w *sandbox.World) ([]version, error) {
	if d.image != "" {
		return d.own(ctx, w)
	}
	say("building %s (only the first time)", d.corpus)
	if err := corpus.Build(ctx, os.Stderr, d.corpus); err != nil {
		return nil, err
	}
	var all []version
	for i, tag := range corpus.Tags {
		im, err := corpus.Load(d.corpus, tag)
		if err != nil {
			return nil, err
		}
		ref, err := w.Push(ctx, im.Layout, im.Name, tag)
		if err != nil {
			return nil, err
		}
		all = append(all, version{whats[i], ref, im.Ready})
	}
	return all, nil
}

// whats are the names of the two pulls.
var whats = []string{"fresh", "update"}

func lastLines(log string) string {
	l := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(l[max(0, len(l)-20):], "\n")
}
