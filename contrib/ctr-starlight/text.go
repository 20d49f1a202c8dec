package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

// table writes rows in columns.
func table(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 1, 8, 2, ' ', 0)
	for _, r := range rows {
		cells := make([]string, len(r))
		for i, c := range r {
			cells[i] = printable(c)
		}
		if _, err := fmt.Fprintln(tw, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printable keeps what came over the network from moving the cursor or
// breaking the columns.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

var units = []string{"B", "KiB", "MiB", "GiB", "TiB"}

// unit picks the largest unit of which n has at least one.
func unit(n float64) (div float64, name string) {
	div, name = 1, units[0]
	for _, u := range units[1:] {
		if n < div*1024 {
			break
		}
		div, name = div*1024, u
	}
	return div, name
}

func scaled(n, div float64) string {
	if div == 1 {
		return fmt.Sprintf("%.0f", n)
	}
	return fmt.Sprintf("%.1f", n/div)
}

// size formats bytes: "1.5 MiB".
func size(n int64) string {
	div, name := unit(float64(n))
	return scaled(float64(n), div) + " " + name
}

// sizes formats a part of a whole in one unit: "0.5/1.5 MiB".
func sizes(part, whole int64) string {
	div, name := unit(float64(whole))
	return scaled(float64(part), div) + "/" + scaled(float64(whole), div) + " " + name
}

// rate formats bytes a second.
func rate(r float64) string {
	if r < 1 {
		return "-"
	}
	div, name := unit(r)
	return scaled(r, div) + " " + name + "/s"
}

// percent of an image's bytes that are local, in tenths rounded down: 100 means all.
func percent(i *api.Image) float64 {
	switch {
	case i.GetComplete():
		return 100
	case i.GetBytes() <= 0:
		return 0
	}
	tenths := float64(i.GetBytesLocal()) / float64(i.GetBytes()) * 1000
	return min(float64(int64(tenths)), 999) / 10
}

func mode(m api.Mode) string {
	switch m {
	case api.Mode_MODE_DELTA:
		return "delta"
	case api.Mode_MODE_PLAIN:
		return "plain"
	default:
		return "unknown"
	}
}
