package report

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/integration/internal/measure"
	"github.com/starlight-delta/starlight/integration/internal/needs"
)

var slow, fast = Link{Mbit: 10, RTT: 0.06}, Link{Mbit: 1000, RTT: 0.0005}

func start(system, image, phase string, l Link, ready float64) Record {
	return Record{System: system, Image: image, Phase: phase, Link: &l, Start: &measure.Start{
		Ready: ready, Pull: ready / 2, Bytes: 2e6, ReadyBytes: 1e6,
		Processes: []measure.Process{{Name: "containerd", CPU: 1, Peak: 30e6}, {Name: "proxyd", CPU: 2, Peak: 40e6}},
		Arrived:   []measure.Point{{At: 0, Bytes: 0}, {At: ready, Bytes: 1e6}},
	}}
}

func records() []Record {
	return []Record{
		{Environment: &Environment{Command: "bench -runs 3", Version: "1.0", Kernel: "6.18", Processors: 2}},
		{Image: "a", Phase: Fresh, Needs: &needs.Start{Ready: 1, Files: []needs.File{{Path: "/bin/a", At: 0.5, Size: 9e5, Read: 5e5}}}},
		// Three runs, of which the middle one counts.
		start("overlayfs", "a", Fresh, slow, 8), start("overlayfs", "a", Fresh, slow, 9), start("overlayfs", "a", Fresh, slow, 1),
		start("starlight", "a", Fresh, slow, 2),
		start("overlayfs", "b", Fresh, slow, 18), start("starlight", "b", Fresh, slow, 2),
		// Starlight lacks this one, which must not make its mean better.
		start("overlayfs", "c", Fresh, slow, 100),
		{System: "starlight", Image: "c", Phase: Fresh, Link: &slow, Error: "it broke\nmore"},
		start("overlayfs", "a", Fresh, fast, 1), start("starlight", "a", Fresh, fast, 1),
		{Image: "a", Phase: Update, Bytes: &Bytes{
			Files: 100, Registry: 9000, Dedup: 4000,
			AtOnce: Sent{Header: 200, Data: 800}, Slow: Sent{Data: 500}, Precomputed: Sent{Header: 100, Data: 400},
		}},
	}
}

func TestMarkdown(t *testing.T) {
	var b strings.Builder
	if err := Markdown(&b, records()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"    bench -runs 3\n",
		"| a, fresh | 8.00 | 2.00 (4.0x) |",
		"| c, fresh | 100.00 | – |",
		"| **geometric mean of 2, fresh** | **12.00** | **2.00 (6.0x)** |",
		"## Time to ready, 1 Gbit/s, 500µs",
		"| 10 Mbit/s, 60ms, fresh | 2.00 | 2.00 |",
		"| a, fresh | 1 | 0.50 | 1.00 |",
		"| a, update | 9 | 4 | 1 (4.00x) | 0 (8.00x) | 0 (8.00x) | 2.0 | 1.0 |",
		"- starlight, c, fresh, 10 Mbit/s, 60ms: `it broke`",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestMarkdownOfOrders(t *testing.T) {
	at := func(system, phase string, ready, waited float64) Record {
		r := start(system, "a", phase, slow, ready)
		r.Start.Waited = waited
		return r
	}
	var b strings.Builder
	if err := Markdown(&b, []Record{
		at("starlight", Fresh, 3, 1), at("starlight-traced", Fresh, 2, 0.5), at("starlight-retraced", Fresh, 2, 0.5),
		at("starlight-traced", Update, 1, 0), at("starlight-retraced", Update, 2, 0),
		start("overlayfs", "b", Fresh, slow, 1),
	}); err != nil {
		t.Fatal(err)
	}
	if want := "| a | 1.50 | – | 0.25 | 0.00 | 0.50 |\n| **median** |"; !strings.Contains(b.String(), want) {
		t.Errorf("no %q in\n%s", want, b.String())
	}
}

func TestPlots(t *testing.T) {
	dir := t.TempDir()
	names, err := Plots(dir, records())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ready-by-rate-fresh.svg", "bytes-update.svg", "arrived-a-fresh-10Mbit-60ms.svg"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s among %q", want, names)
		}
	}
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		d := xml.NewDecoder(f)
		for err == nil {
			_, err = d.Token()
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestLogSurvivesACut(t *testing.T) {
	dir := t.TempDir()
	l, err := Append(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records() {
		if err := l.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, Name)
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, st.Size()-10); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := len(records()) - 1; len(got) != want {
		t.Errorf("got %d records of a file that was cut in its last line, want %d", len(got), want)
	}
}

func TestGeometric(t *testing.T) {
	tests := []struct {
		name string
		v    []float64
		want float64
	}{
		{"of powers", []float64{1, 4, 16}, 4},
		{"a zero counts as the smallest", []float64{0, 2, 8}, math.Cbrt(2 * 2 * 8)},
		{"of zeros", []float64{0, 0}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := geometric(tt.v); math.Abs(got-tt.want) > 1e-9 {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
