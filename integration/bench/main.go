// Command bench measures Starlight beside its rivals on emulated links, with real
// images: time, bytes, round trips, processor time, memory and disk. It appends
// every figure to a file as a line of JSON, and makes tables and plots of them.
//
// A cell of the comparison is one image on one link with one system: a new node
// with cold caches pulls and starts the first version, and then the second. What
// fails is reported in the place of its figures, and the rest goes on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/report"
	"github.com/starlight-delta/starlight/integration/internal/system"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

type bench struct {
	parts, images, systems []string
	links                  []report.Link
	dir                    string
	runs                   int
	resume                 bool

	bin, stock tools.Binaries
	log        *report.Log
	had        []report.Record // of earlier runs, with resume
	failed     int
}

var allParts = []string{"starts", "bytes", "disk"}

func main() {
	var b bench
	list := func(p *[]string, name string, all []string, usage string) {
		*p = all
		flag.Func(name, fmt.Sprintf("%s, separated by commas (default %s)", usage, strings.Join(all, ",")), func(s string) error {
			*p = strings.Split(s, ",")
			for _, v := range *p {
				if !slices.Contains(all, v) {
					return fmt.Errorf("there is no %q", v)
				}
			}
			return nil
		})
	}
	list(&b.parts, "parts", allParts, "what to measure")
	list(&b.images, "images", corpus.AllNames, "images of the corpus")
	list(&b.systems, "systems", systemNames, "systems of the starts")
	links := flag.String("links", "100:20ms,100:100ms,10:60ms,1000:500us", "links of the starts: Mbit/s and round-trip time")
	flag.IntVar(&b.runs, "runs", 1, "repetitions; the median counts")
	flag.StringVar(&b.dir, "dir", "bench-results", "directory for figures, tables, plots, and logs of what failed")
	flag.BoolVar(&b.resume, "resume", false, "leave out what the directory has figures of")
	only := flag.Bool("report", false, "measure nothing: make tables and plots of the figures in the directory")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if b.links, err = parseLinks(*links); err == nil && !*only {
		err = b.run(ctx)
	}
	if err := errors.Join(err, b.report()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if b.failed > 0 {
		fmt.Fprintf(os.Stderr, "bench: %d failures, see the end of %s\n", b.failed, filepath.Join(b.dir, tableName))
		os.Exit(1)
	}
}

func parseLinks(s string) ([]report.Link, error) {
	var all []report.Link
	for one := range strings.SplitSeq(s, ",") {
		mbit, rtt, _ := strings.Cut(one, ":")
		m, err := strconv.ParseFloat(mbit, 64)
		if err != nil {
			return nil, fmt.Errorf("link %q is not MBIT:RTT: %w", one, err)
		}
		d, err := time.ParseDuration(rtt)
		if err != nil {
			return nil, fmt.Errorf("link %q is not MBIT:RTT: %w", one, err)
		}
		all = append(all, report.Link{Mbit: m, RTT: d.Seconds()})
	}
	return all, nil
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.bin, err = tools.Product(); err != nil {
		return err
	}
	if b.stock, err = tools.Stock(ctx); err != nil {
		return err
	}
	if b.resume {
		if b.had, err = report.Load(b.dir); err != nil {
			return err
		}
	}
	if b.log, err = report.Append(b.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.log.Close()) }()
	if err := b.log.Add(report.Record{Environment: environment(ctx)}); err != nil {
		return err
	}
	for _, name := range b.images {
		if err := corpus.Build(ctx, os.Stderr, name); err != nil {
			if err := b.fail(report.Record{Image: name}, err); err != nil {
				return err
			}
		}
	}
	for _, p := range []struct {
		name string
		run  func(context.Context) error
	}{{"bytes", b.bytes}, {"starts", b.starts}, {"disk", b.disk}} {
		if !slices.Contains(b.parts, p.name) {
			continue
		}
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// perImage runs f for each image and reports its failures; it ends with ctx.
func (b *bench) perImage(ctx context.Context, f func(versions []corpus.Image) error) error {
	for i, name := range b.images {
		say("image %s, %d of %d", name, i+1, len(b.images))
		var versions []corpus.Image
		var err error
		for _, tag := range corpus.Tags {
			im, lerr := corpus.Load(name, tag)
			versions, err = append(versions, im), errors.Join(err, lerr)
		}
		if err == nil {
			err = f(versions)
		}
		if err != nil {
			if err := b.fail(report.Record{Image: name}, err); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// fail records that something could not be measured.
func (b *bench) fail(r report.Record, err error) error {
	b.failed++
	say("FAILED: %v", err)
	r.Error = err.Error()
	return b.log.Add(r)
}

// has tells whether an earlier run has a figure; same compares it.
func (b *bench) has(same func(report.Record) bool) bool { return slices.ContainsFunc(b.had, same) }

var began = time.Now()

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%7.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}

func environment(ctx context.Context) *report.Environment {
	e := &report.Environment{Command: "bench " + strings.Join(os.Args[1:], " "), Processors: runtime.NumCPU()}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output(); err == nil {
		e.Version = strings.TrimSpace(string(out))
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		e.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return e
}

const tableName = "report.md"

// report makes tables and plots of all figures of the directory.
func (b *bench) report() error {
	records, err := report.Load(b.dir)
	if err != nil || len(records) == 0 {
		return err
	}
	plots, err := report.Plots(b.dir, records)
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(b.dir, tableName))
	if err != nil {
		return err
	}
	err = report.Markdown(f, records)
	for _, p := range plots {
		if err == nil {
			_, err = fmt.Fprintf(f, "![%s](%s)\n", strings.TrimSuffix(p, filepath.Ext(p)), p)
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	say("wrote %s and %d plots", filepath.Join(b.dir, tableName), len(plots))
	return nil
}

// systemNames in the order of the tables.
var systemNames = []string{"overlayfs", "erofs", "estargz", "starlight", "starlight-precomputed", "starlight-traced", "starlight-retraced"}

// system makes a system by its name, with the programs that it needs.
func (b *bench) system(ctx context.Context, name string) (system.System, error) {
	switch name {
	case "overlayfs":
		return system.Overlayfs{Binaries: b.stock}, nil
	case "erofs":
		path, err := tools.MkfsErofs(ctx)
		return system.Erofs{Binaries: b.stock, Path: path}, err
	case "estargz":
		bin, err := tools.Stargz(ctx)
		return system.EStargz{Binaries: b.stock, Stargz: bin}, err
	case "starlight":
		return system.Starlight{Binaries: b.bin}, nil
	case "starlight-precomputed":
		return system.Starlight{Binaries: b.bin, Precomputed: true}, nil
	case "starlight-traced":
		return system.Starlight{Binaries: b.bin, Traced: 1}, nil
	case "starlight-retraced":
		return system.Starlight{Binaries: b.bin, Traced: 2}, nil
	default:
		return nil, fmt.Errorf("there is no system %q", name)
	}
}
