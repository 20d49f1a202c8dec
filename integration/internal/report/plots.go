package report

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"

	"github.com/starlight-delta/starlight/integration/internal/measure"
)

// Plots writes the plots of all records into dir and returns their names.
func Plots(dir string, records []Record) ([]string, error) {
	p := &plots{set: newSet(records), dir: dir}
	for _, phase := range Phases {
		p.byRTT(phase)
		p.byRate(phase)
		p.byImage(phase)
		for _, l := range p.links {
			for _, im := range p.images {
				p.arrived(l, im, phase)
			}
		}
	}
	return p.names, errors.Join(p.errs...)
}

type plots struct {
	*set
	dir   string
	names []string
	errs  []error
}

func (p *plots) save(pl *plot.Plot, name string) {
	name = strings.NewReplacer(" ", "", "/", "", ",", "-").Replace(name) + ".svg"
	if err := write(pl, filepath.Join(p.dir, name)); err != nil {
		p.errs = append(p.errs, fmt.Errorf("%s: %w", name, err))
		return
	}
	p.names = append(p.names, name)
}

// byRTT draws the time to ready over the round-trip time, for the rate that most
// links have.
func (p *plots) byRTT(phase string) {
	count := make(map[float64]int)
	for _, l := range p.links {
		count[l.Mbit]++
	}
	best := 0.0
	for mbit, n := range count {
		if n > count[best] || n == count[best] && mbit > best {
			best = mbit
		}
	}
	if count[best] < 2 {
		return
	}
	var links []Link
	for _, l := range p.links {
		if l.Mbit == best {
			links = append(links, l)
		}
	}
	const milli = 1e3
	pl := newPlot(fmt.Sprintf("Time to ready, %s, %s", phase, rate(best)), "round-trip time, ms", "s, geometric mean")
	if p.lines(pl, links, phase, func(l Link) float64 { return l.RTT * milli }) {
		pl.Y.Min = 0
		p.save(pl, "ready-by-rtt-"+phase)
	}
}

// byRate draws the time to ready over the rate; of several links with one rate it
// takes that with the shortest round trip.
func (p *plots) byRate(phase string) {
	var links []Link
	for _, l := range p.links { // in the order of rate and round trip
		if len(links) == 0 || links[len(links)-1].Mbit != l.Mbit {
			links = append(links, l)
		}
	}
	if len(links) < 2 {
		return
	}
	pl := newPlot("Time to ready, "+phase, "link", "s, geometric mean")
	if !p.lines(pl, links, phase, func(l Link) float64 { return l.Mbit }) {
		return
	}
	logarithmic(&pl.X)
	logarithmic(&pl.Y)
	var ticks []plot.Tick
	for _, l := range links {
		ticks = append(ticks, plot.Tick{Value: l.Mbit, Label: l.String()})
	}
	pl.X.Tick.Marker = plot.ConstantTicks(ticks)
	p.save(pl, "ready-by-rate-"+phase)
}

// lines adds one line per system with a point per link, and tells whether there is
// any.
func (p *plots) lines(pl *plot.Plot, links []Link, phase string, x func(Link) float64) (some bool) {
	for i, sys := range p.systems {
		var xys plotter.XYs
		for _, l := range links {
			if v, n := p.mean(l, sys, phase, ready); n > 0 {
				xys = append(xys, plotter.XY{X: x(l), Y: v})
			}
		}
		p.errs = append(p.errs, addLine(pl, sys, xys, style{color: i, marks: true}))
		some = some || len(xys) > 0
	}
	return some
}

// byImage draws the bytes of each image as groups of bars.
func (p *plots) byImage(phase string) {
	var images []string
	for _, im := range p.images {
		if _, ok := p.bytes[pair{im, phase}]; ok {
			images = append(images, im)
		}
	}
	if len(images) == 0 {
		return
	}
	slices.SortFunc(images, func(a, b string) int {
		return cmp.Compare(p.bytes[pair{a, phase}].Registry, p.bytes[pair{b, phase}].Registry)
	})
	type kind struct {
		name string
		of   func(Bytes) int64
	}
	kinds := []kind{
		{"layers of the registry", func(b Bytes) int64 { return b.Registry }},
		{"files, gzip -9", func(b Bytes) int64 { return b.Dedup }},
		{"Starlight at once", func(b Bytes) int64 { return b.AtOnce.Total() }},
		{"Starlight, precomputed", func(b Bytes) int64 { return b.Precomputed.Total() }},
	}
	if phase == Update {
		kinds = slices.Insert(kinds, 3, kind{"… on the slow link", func(b Bytes) int64 { return b.Slow.Total() }})
	}
	pl := newPlot("Bytes over the link, "+phase, "", "MB")
	const mega = 1e6
	var groups []group
	for _, k := range kinds {
		g := group{name: k.name}
		for _, im := range images {
			g.values = append(g.values, float64(k.of(p.bytes[pair{im, phase}]))/mega)
		}
		groups = append(groups, g)
	}
	addBars(pl, images, groups)
	logarithmic(&pl.Y)
	p.save(pl, "bytes-"+phase)
}

// arrived draws what came over the link until an image was ready, and what a
// container reads if everything is local, from the moment our pull returned.
func (p *plots) arrived(l Link, image, phase string) {
	var end, pulled float64
	pl := newPlot(fmt.Sprintf("%s, %s, %s", image, phase, l), "s from the start of the pull", "MB")
	const mega = 1e6
	for i, sys := range p.systems {
		runs := p.starts[cell{l, sys, image, phase}]
		if len(runs) == 0 {
			continue
		}
		run := slices.MinFunc(runs, func(a, b measure.Start) int { return cmp.Compare(a.Ready, b.Ready) })
		var xys plotter.XYs
		for _, pt := range run.Arrived {
			xys = append(xys, plotter.XY{X: pt.At, Y: float64(pt.Bytes) / mega})
		}
		if len(xys) == 0 {
			continue
		}
		at := plotter.XY{X: run.Ready, Y: float64(run.ReadyBytes) / mega}
		p.errs = append(p.errs, addLine(pl, sys, xys, style{color: i}), addMark(pl, at, i))
		end = max(end, run.Ready)
		if sys == ours {
			pulled = run.Pull
		}
	}
	if end == 0 {
		return
	}
	if n, ok := p.needs[pair{image, phase}]; ok && pulled > 0 {
		need, sum := plotter.XYs{{X: pulled}}, int64(0)
		for _, f := range n.Files {
			need = append(need, plotter.XY{X: pulled + f.At, Y: float64(sum) / mega})
			sum += f.Read
			need = append(need, plotter.XY{X: pulled + f.At, Y: float64(sum) / mega})
		}
		p.errs = append(p.errs, addLine(pl, "read, uncompressed", need, style{color: black, dashed: true}))
	}
	pl.Legend.Add("ready", mark())
	pl.X.Min, pl.Y.Min = 0, 0
	// What comes after the slowest is ready is of no interest here.
	const room = 1.05
	pl.X.Max = end * room
	p.save(pl, fmt.Sprintf("arrived-%s-%s-%gMbit-%gms", image, phase, l.Mbit, l.RTT*1e3))
}

// ours is the system that the others are rivals of.
const ours = "starlight"
