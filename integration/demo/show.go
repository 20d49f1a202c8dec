package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/starlight-delta/starlight/integration/internal/measure"
)

var (
	began    = time.Now()
	terminal = term.IsTerminal(int(os.Stderr.Fd()))
)

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}

func clearLine() {
	if terminal {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}

// progress shows a line that changes in place, on a terminal.
func progress(side, what string) func(measure.Stage) {
	if !terminal {
		return nil
	}
	return func(s measure.Stage) {
		fmt.Fprintf(os.Stderr, "\r\x1b[K%6.1f s  %s, %s: %-8s  %8s  %5.1f s",
			time.Since(began).Seconds(), side, what, s.Name, megabytes(s.Bytes), s.Since.Seconds())
	}
}

func megabytes(n int64) string { return fmt.Sprintf("%.2f MB", float64(n)/1e6) }

type row struct {
	side, what string
	measure.Start
}

func printTable(out io.Writer, link string, versions []version, rows []row) error {
	fmt.Fprintln(out)
	for _, v := range versions {
		fmt.Fprintf(out, "%-7s %s\n", v.what, v.ref)
	}
	fmt.Fprintf(out, "link    %s\n\n", link)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\t\ttime to ready\tpull\tbytes\tround trips\tratio\t")
	base := make(map[string]float64)
	for _, r := range rows {
		ratio := ""
		if b, ok := base[r.what]; ok {
			ratio = fmt.Sprintf("%.1fx", b/r.Ready)
		} else {
			base[r.what] = r.Ready
		}
		fmt.Fprintf(t, "%s\t%s\t%.2f s\t%.2f s\t%s\t%d\t%s\t\n", r.side, r.what, r.Ready, r.Pull, megabytes(r.Bytes), r.Trips, ratio)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, "\nTime to ready: from the start of the pull until the application answers. Bytes: down to the\n"+
		"node, until everything is local. Round trips: those one after the other, until ready.")
	return err
}
