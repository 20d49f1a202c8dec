package report

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/starlight-delta/starlight/integration/internal/measure"
)

// base is the system that others are compared with.
const base = "overlayfs"

// Markdown writes everything as tables.
func Markdown(w io.Writer, records []Record) error {
	s := newSet(records)
	t := &tables{w: w}
	t.say("# Benchmark\n")
	for _, e := range s.environments {
		t.say("    %s\n", e.Command)
		t.say("Starlight %s, Linux %s, %d processors.\n", e.Version, e.Kernel, e.Processors)
	}
	for _, l := range s.links {
		t.ready(s, l)
	}
	for _, l := range s.links {
		t.costs(s, l)
	}
	for _, l := range s.links {
		t.order(s, l)
	}
	t.needs(s)
	t.bytes(s)
	t.disk(s)
	t.failures(s)
	return t.err
}

type tables struct {
	w   io.Writer
	err error
}

func (t *tables) say(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format+"\n", args...)
	}
}

// table writes a table whose first column is text and whose others are figures.
func (t *tables) table(head []string, rows [][]string) {
	t.say("| %s |", strings.Join(head, " | "))
	t.say("|---%s|", strings.Repeat("|--:", len(head)-1))
	for _, r := range rows {
		t.say("| %s |", strings.Join(r, " | "))
	}
	t.say("")
}

// ready compares the time to ready of all images.
func (t *tables) ready(s *set, l Link) {
	t.say("## Time to ready, %s\n", l)
	t.say("Seconds from the start of the pull until the application is of use; how many times faster than %s.\n", base)
	var rows [][]string
	for _, phase := range Phases {
		for _, im := range s.images {
			row := []string{im + ", " + phase}
			b, ok := s.get(cell{l, base, im, phase}, ready)
			for _, sys := range s.systems {
				v, have := s.get(cell{l, sys, im, phase}, ready)
				row = append(row, timeCell(v, have, b, ok && sys != base))
			}
			if slices.ContainsFunc(row[1:], func(c string) bool { return c != none }) {
				rows = append(rows, row)
			}
		}
	}
	for _, phase := range Phases {
		b, _ := s.mean(l, base, phase, ready)
		row, n := []string{""}, 0
		for _, sys := range s.systems {
			var v float64
			v, n = s.mean(l, sys, phase, ready)
			row = append(row, "**"+timeCell(v, n > 0, b, !math.IsNaN(b) && sys != base)+"**")
		}
		row[0] = fmt.Sprintf("**geometric mean of %d, %s**", n, phase)
		if n > 0 {
			rows = append(rows, row)
		}
	}
	t.table(append([]string{""}, s.systems...), rows)
}

const none = "–"

func timeCell(v float64, have bool, base float64, compare bool) string {
	switch {
	case !have:
		return none
	case compare:
		return fmt.Sprintf("%.2f (%.1fx)", v, base/v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// costs has the geometric means of everything else that was measured.
func (t *tables) costs(s *set, l Link) {
	t.say("## Costs, %s\n", l)
	t.say("Geometric means over the images. Round trips: one after the other, until ready. CPU and peak memory: " +
		"containerd and all else that works for the node; proxyd apart.\n")
	columns := []struct {
		name, format string
		of           func(measure.Start) float64
	}{
		{"pull, s", "%.2f", func(m measure.Start) float64 { return m.Pull }},
		{"ready, s", "%.2f", ready},
		{"complete, s", "%.2f", func(m measure.Start) float64 { return m.Done }},
		{"waited, s", "%.2f", func(m measure.Start) float64 { return m.Waited }},
		{"MB", "%.2f", func(m measure.Start) float64 { return float64(m.Bytes) / 1e6 }},
		{"MB until ready", "%.2f", func(m measure.Start) float64 { return float64(m.ReadyBytes) / 1e6 }},
		{"round trips", "%.1f", func(m measure.Start) float64 { return float64(m.Trips) }},
		{"CPU, s", "%.2f", func(m measure.Start) float64 { cpu, _ := used(m, false); return cpu }},
		{"peak MB", "%.0f", func(m measure.Start) float64 { _, peak := used(m, false); return peak / 1e6 }},
		{"proxyd CPU, s", "%.2f", func(m measure.Start) float64 { cpu, _ := used(m, true); return cpu }},
		{"proxyd peak MB", "%.0f", func(m measure.Start) float64 { _, peak := used(m, true); return peak / 1e6 }},
		{"disk MB", "%.0f", func(m measure.Start) float64 { return float64(m.Disk) / 1e6 }},
	}
	head := []string{""}
	for _, c := range columns {
		head = append(head, c.name)
	}
	var rows [][]string
	for _, phase := range Phases {
		for _, sys := range s.systems {
			row := []string{sys + ", " + phase}
			for _, c := range columns {
				v, n := s.mean(l, sys, phase, c.of)
				if n == 0 || v == 0 {
					row = append(row, none)
					continue
				}
				row = append(row, fmt.Sprintf(c.format, v))
			}
			rows = append(rows, row)
		}
	}
	t.table(head, rows)
}

// used adds up the processes of the far end, or of the node.
func used(m measure.Start, far bool) (cpu, peak float64) {
	for _, p := range m.Processes {
		if (p.Name == "proxyd") == far {
			cpu += p.CPU
			peak += float64(p.Peak)
		}
	}
	return cpu, peak
}

// The systems that differ by the order of sending only.
const predicted, traced, retraced = "starlight", "starlight-traced", "starlight-retraced"

// order compares the orders of sending.
func (t *tables) order(s *set, l Link) {
	ratio := func(image, phase, a, b string) (float64, bool) {
		x, ok := s.get(cell{l, a, image, phase}, ready)
		y, have := s.get(cell{l, b, image, phase}, ready)
		return x / y, ok && have
	}
	columns := []func(image string) (float64, bool){
		func(im string) (float64, bool) { return ratio(im, Fresh, predicted, traced) },
		func(im string) (float64, bool) { return ratio(im, Update, predicted, traced) },
		func(im string) (float64, bool) { return waited(s, cell{l, traced, im, Fresh}) },
		func(im string) (float64, bool) { return waited(s, cell{l, traced, im, Update}) },
		func(im string) (float64, bool) { return ratio(im, Update, traced, retraced) },
	}
	all := make([][]float64, len(columns))
	var rows [][]string
	for _, im := range s.images {
		row := []string{im}
		for i, c := range columns {
			v, ok := c(im)
			if !ok {
				row = append(row, none)
				continue
			}
			all[i] = append(all[i], v)
			row = append(row, fmt.Sprintf("%.2f", v))
		}
		if slices.ContainsFunc(row[1:], func(c string) bool { return c != none }) {
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		return
	}
	row := []string{"**median**"}
	for _, vs := range all {
		c := none
		if len(vs) > 0 {
			c = fmt.Sprintf("**%.2f**", median(vs))
		}
		row = append(row, c)
	}
	t.say("## Order of sending, %s\n", l)
	t.say("Time to ready with a predicted order for each second with a traced one; what readers waited in all for each " +
		"second until ready, with a traced one; and time to ready with the order of the version before for each second with one of its own.\n")
	t.table([]string{"", "predicted, fresh", "predicted, update", "waited, fresh", "waited, update", "inherited"}, append(rows, row))
}

// waited is the share of the time until ready that readers waited.
func waited(s *set, c cell) (float64, bool) {
	return s.get(c, func(m measure.Start) float64 { return m.Waited / m.Ready })
}

// needs compares what had come when an application was ready with what it read.
func (t *tables) needs(s *set) {
	if len(s.needs) == 0 {
		return
	}
	t.say("## Received until ready, against read\n")
	t.say("Bytes over the link until ready, for each byte that the start reads if everything is local (whole pages, " +
		"uncompressed); the median of the images.\n")
	var rows [][]string
	for _, l := range s.links {
		for _, phase := range Phases {
			row := []string{l.String() + ", " + phase}
			for _, sys := range s.systems {
				var all []float64
				for _, im := range s.images {
					n, known := s.needs[pair{im, phase}]
					v, ok := s.get(cell{l, sys, im, phase}, func(m measure.Start) float64 { return float64(m.ReadyBytes) })
					if read := n.Bytes(); known && ok && read > 0 {
						all = append(all, v/float64(read))
					}
				}
				c := none
				if len(all) > 0 {
					c = fmt.Sprintf("%.2f", median(all))
				}
				row = append(row, c)
			}
			rows = append(rows, row)
		}
	}
	t.table(append([]string{""}, s.systems...), rows)
	rows = nil
	for _, im := range s.images {
		for _, phase := range Phases {
			if n, ok := s.needs[pair{im, phase}]; ok {
				rows = append(rows, []string{
					im + ", " + phase, fmt.Sprint(len(n.Files)), fmt.Sprintf("%.2f", float64(n.Bytes())/1e6), fmt.Sprintf("%.2f", n.Ready),
				})
			}
		}
	}
	t.say("What the starts read:\n")
	t.table([]string{"", "files", "MB", "ready when all is local, s"}, rows)
}

// bytes compares what is sent.
func (t *tables) bytes(s *set) {
	if len(s.bytes) == 0 {
		return
	}
	t.say("## Bytes\n")
	t.say("kB over the link. Layers: of the registry, as they are. Files: contents that the node lacks, each with gzip -9 " +
		"alone. Starlight: what proxyd sends when it is asked for the first time, over 100 Mbit/s, 20 ms, and over 10 Mbit/s, 60 ms (what would " +
		"be there later than the plain file is sent plain), and when it had time since; how many " +
		"times fewer than the layers (fresh) or the files (update). Header: all but the contents, in bytes for each file of the image.\n")
	var rows [][]string
	for _, phase := range Phases {
		sums := make([][]float64, 5)
		rival := 0 // of what has a ratio
		if phase == Update {
			rival = 1
		}
		for _, im := range s.images {
			b, ok := s.bytes[pair{im, phase}]
			if !ok {
				continue
			}
			row := []string{im + ", " + phase}
			all := []int64{b.Registry, b.Dedup, b.AtOnce.Total(), b.Slow.Total(), b.Precomputed.Total()}
			for i, v := range all {
				sums[i] = append(sums[i], float64(v))
				row = append(row, byteCell(float64(v), float64(all[rival]), i > 1))
			}
			rows = append(rows, append(row, perFile(b.AtOnce, b.Files), perFile(b.Precomputed, b.Files)))
		}
		if len(sums[0]) == 0 {
			continue
		}
		row := []string{fmt.Sprintf("**geometric mean of %d, %s**", len(sums[0]), phase)}
		for i := range sums {
			row = append(row, "**"+byteCell(geometric(sums[i]), geometric(sums[rival]), i > 1)+"**")
		}
		rows = append(rows, append(row, "", ""))
	}
	t.table([]string{"", "layers", "files", "Starlight at once", "on the slow link", "precomputed", "header at once", "header later"}, rows)
}

func byteCell(v, base float64, compare bool) string {
	switch {
	case compare && v == 0:
		return none
	case compare:
		return fmt.Sprintf("%.0f (%.2fx)", v/1e3, base/v)
	}
	return fmt.Sprintf("%.0f", v/1e3)
}

func perFile(s Sent, files int) string {
	if files == 0 {
		return none
	}
	return fmt.Sprintf("%.1f", float64(s.Header)/float64(files))
}

func (t *tables) disk(s *set) {
	if len(s.disk) == 0 {
		return
	}
	t.say("## A complete image on disk\n")
	var rows [][]string
	for _, d := range s.disk {
		cache := "warm"
		if d.Cold {
			cache = "cold"
		}
		rows = append(rows, []string{
			d.Operation + ", " + cache, fmt.Sprintf("%.3f", d.Overlayfs), fmt.Sprintf("%.3f", d.Starlight),
			fmt.Sprintf("%.2f", d.Overlayfs/d.Starlight),
		})
	}
	t.table([]string{"", "overlayfs, s", "Starlight, s", "speed ratio"}, rows)
}

func (t *tables) failures(s *set) {
	if len(s.failures) == 0 {
		return
	}
	t.say("## What failed\n")
	for _, f := range s.failures {
		link := ""
		if f.Link != nil {
			link = f.Link.String()
		}
		what := strings.Join(slices.DeleteFunc([]string{f.System, f.Image, f.Phase, link}, func(s string) bool { return s == "" }), ", ")
		first, _, _ := strings.Cut(f.Error, "\n")
		t.say("- %s: `%s`", what, first)
	}
	t.say("")
}
