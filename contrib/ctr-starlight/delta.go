package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

// most images to compare with, and files to name: the proxy takes no more.
const (
	maxFrom = 16
	maxTop  = 256
)

func deltaCommand() *cli.Command {
	return &cli.Command{
		Name:      "delta",
		Usage:     "say what a pull would bring, and pull nothing",
		ArgsUsage: "[FROM…] TO",
		Description: "Without FROM, as the node is; with FROM, as if it had exactly these images. The proxy makes the bundle and\n" +
			"counts it, so it may have to read the images first. Which patches a pull gets depends on the speed of the\n" +
			"link and of the proxy, too: the numbers are those with all of them.\n" +
			"The password of --user is for the registry of TO only, and best given in the environment:\n" +
			"CTR_STARLIGHT_USER=user:password",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "from", Usage: "the same as FROM", HideDefault: true},
			&cli.IntFlag{Name: "top", Value: 10, Usage: "how many files to name, up to 256"},
			&cli.StringFlag{Name: "platform", Usage: "os/arch[/variant] (default: that of the node)", HideDefault: true},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "user:password for the registry", Sources: cli.EnvVars("CTR_STARLIGHT_USER")},
			jsonFlag("a JSON object"),
		},
		Action:        connect(delta),
		ShellComplete: completeRefs,
	}
}

// deltaJSON is the output of --json: fields may be added, and never change.
type deltaJSON struct {
	Ref           string      `json:"ref"`
	From          []string    `json:"from"` // empty: what the node has
	Proxy         string      `json:"proxy"`
	Manifest      string      `json:"manifest"`
	Layers        int64       `json:"layers"`
	KnownLayers   int64       `json:"knownLayers"`
	StrangeLayers int64       `json:"strangeLayers"`
	LayerBytes    int64       `json:"layerBytes"`
	PlainBytes    int64       `json:"plainBytes"`
	MetadataBytes int64       `json:"metadataBytes"`
	WireBytes     int64       `json:"wireBytes"`
	MostWireBytes int64       `json:"mostWireBytes"` // without patches
	Total         shareJSON   `json:"total"`
	Local         shareJSON   `json:"local"`
	Patched       shareJSON   `json:"patched"`
	New           shareJSON   `json:"new"`
	Files         []deltaFile `json:"files"`
}

type shareJSON struct {
	Objects   int64 `json:"objects"`
	Bytes     int64 `json:"bytes"`
	WireBytes int64 `json:"wireBytes"`
}

type deltaFile struct {
	Path      string `json:"path"`
	Bytes     int64  `json:"bytes"`
	WireBytes int64  `json:"wireBytes"`
	How       string `json:"how"` // "patch" or "new"
}

func delta(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if err := arguments(c, 1, maxFrom+1); err != nil {
		return err
	}
	refs := c.Args().Slice()
	to := refs[len(refs)-1]
	from := append(c.StringSlice("from"), refs[:len(refs)-1]...)
	top := c.Int("top")
	switch {
	case len(from) > maxFrom:
		return fmt.Errorf("%d images to compare with, at most %d are possible", len(from), maxFrom)
	case top < 0 || top > maxTop:
		return fmt.Errorf("--top %d is not between 0 and %d", top, maxTop)
	}
	user, secret, _ := strings.Cut(c.String("user"), ":")
	stream, err := client.Plan(ctx, &api.PlanRequest{
		Ref: to, Platform: c.String("platform"), Username: user, Secret: secret, From: from, Top: int32(top),
	})
	if err != nil {
		return said(ctx, err)
	}
	for {
		r, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return errors.New("containerd ended without a plan")
		case err != nil:
			return said(ctx, err)
		case r.GetPlan() != nil:
			out := asDelta(to, from, r.GetPlan())
			if c.Bool("json") {
				return writeJSON(c.Root().Writer, out)
			}
			return out.write(c.Root().Writer)
		case isTerminal(c.Root().ErrWriter):
			doing := map[string]string{"ingest": "the proxy reads the image", "plan": "the proxy counts"}[r.GetStage()]
			_, _ = fmt.Fprintf(c.Root().ErrWriter, "\r\x1b[K%s: %s\r", doing, sizes(r.GetDone(), r.GetTotal()))
		}
	}
}

func asDelta(ref string, from []string, p *api.Plan) *deltaJSON {
	share := func(s *api.Share) shareJSON { return shareJSON{s.GetObjects(), s.GetBytes(), s.GetWireBytes()} }
	out := &deltaJSON{
		Ref: ref, From: append([]string{}, from...), Proxy: p.GetProxy(), Manifest: p.GetManifest(),
		Layers: p.GetLayers(), KnownLayers: p.GetKnownLayers(), StrangeLayers: p.GetStrangeLayers(),
		LayerBytes: p.GetLayerBytes(), PlainBytes: p.GetPlainBytes(),
		MetadataBytes: p.GetMetadataBytes(), WireBytes: p.GetWireBytes(), MostWireBytes: p.GetMostWireBytes(),
		Total: share(p.GetTotal()), Local: share(p.GetLocal()), Patched: share(p.GetPatched()), New: share(p.GetNew()),
		Files: []deltaFile{},
	}
	for _, f := range p.GetFiles() {
		how := "new"
		if f.GetPatched() {
			how = "patch"
		}
		out.Files = append(out.Files, deltaFile{f.GetPath(), f.GetBytes(), f.GetWireBytes(), how})
	}
	return out
}

func (d *deltaJSON) write(w io.Writer) error {
	from := "what the node has"
	if len(d.From) > 0 {
		from = strings.Join(d.From, ", ")
	}
	head := fmt.Sprintf("%s, from %s, by %s", d.Ref, from, d.Proxy)
	if _, err := fmt.Fprintf(w, "%s\n\n", printable(head)); err != nil {
		return err
	}
	row := func(name string, s shareJSON, wire int64, why string) []string {
		return []string{name, strconv.FormatInt(s.Objects, 10), size(s.Bytes), size(wire), why}
	}
	known := fmt.Sprintf("%d of %d layers are known", d.KnownLayers, d.Layers)
	rows := [][]string{
		{"", "CONTENTS", "SIZE", "WIRE", "WHY"},
		row("local", d.Local, 0, "are there already: "+known),
		row("patched", d.Patched, d.Patched.WireBytes, "are made from what is there"),
		row("new", d.New, d.New.WireBytes, "come as they are"),
		{"metadata", "", "", size(d.MetadataBytes), "manifest, config, names of files"},
		row("total", d.Total, d.WireBytes, d.against()),
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if d.MostWireBytes > d.WireBytes {
		if _, err := fmt.Fprintf(w, "\nWithout patches it is %s: the proxy sends what it cannot patch in time as it is.\n", size(d.MostWireBytes)); err != nil {
			return err
		}
	}
	if d.StrangeLayers > 0 {
		if _, err := fmt.Fprintf(w, "\nThe proxy does not know %d of the layers that the node has: what is in them may be sent again.\n"+
			"Their images it reads after ctr-starlight notify REF.\n", d.StrangeLayers); err != nil {
			return err
		}
	}
	if len(d.Files) == 0 {
		return nil
	}
	rows = [][]string{{"WIRE", "SIZE", "HOW", "PATH"}}
	for _, f := range d.Files {
		rows = append(rows, []string{size(f.WireBytes), size(f.Bytes), f.How, f.Path})
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return table(w, rows)
}

// against compares with a pull of stock containerd that has the known layers.
func (d *deltaJSON) against() string {
	if d.PlainBytes <= 0 {
		return "a plain pull brings no layer"
	}
	diff := (d.PlainBytes - d.WireBytes) * 100 / d.PlainBytes
	if diff < 0 {
		return fmt.Sprintf("%d%% more than the layers of a plain pull, %s", -diff, size(d.PlainBytes))
	}
	return fmt.Sprintf("%d%% less than the layers of a plain pull, %s", diff, size(d.PlainBytes))
}
