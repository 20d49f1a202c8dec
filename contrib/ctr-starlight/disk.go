package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/urfave/cli/v3"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

func jsonFlag(what string) cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print " + what} }

func fsckCommand() *cli.Command {
	return &cli.Command{
		Name:  "fsck",
		Usage: "check all that is on the disk against its digests",
		Description: "Reads every content, so it takes as long as the disk does. Pulls and containers go on meanwhile.\n" +
			"Ends with 0 if nothing is wrong or everything was repaired, and with 1 otherwise.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "remove what is wrong; what is lost is fetched again"},
			jsonFlag("a JSON object"),
		},
		Action: connect(fsck),
	}
}

// problemJSON and the following are the output of --json: fields may be added, and
// never change.
type problemJSON struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Detail   string `json:"detail"`
	Repaired bool   `json:"repaired"`
}

type fsckJSON struct {
	Problems []problemJSON `json:"problems"`
	Images   int64         `json:"images"`
	Layers   int64         `json:"layers"`
	Trees    int64         `json:"trees"`
	Objects  int64         `json:"objects"`
	Bytes    int64         `json:"bytes"`
	Repaired int64         `json:"repaired"`
}

func fsck(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	stream, err := client.Fsck(ctx, &api.FsckRequest{Repair: c.Bool("repair")})
	if err != nil {
		return said(ctx, err)
	}
	out := fsckJSON{Problems: []problemJSON{}}
	var sum *api.FsckSummary
	for sum == nil {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("containerd ended the check without a summary")
		}
		if err != nil {
			return said(ctx, err)
		}
		sum = r.GetSummary()
		p := r.GetProblem()
		if p == nil {
			continue
		}
		out.Problems = append(out.Problems, problemJSON{p.GetKind(), p.GetName(), p.GetDetail(), p.GetRepaired()})
		if !c.Bool("json") {
			line := p.GetKind() + " " + p.GetName() + ": " + p.GetDetail()
			if p.GetRepaired() {
				line += " (repaired)"
			}
			if _, err := fmt.Fprintln(c.Root().Writer, printable(line)); err != nil {
				return err
			}
		}
	}
	out.Images, out.Layers, out.Trees = sum.GetImages(), sum.GetLayers(), sum.GetTrees()
	out.Objects, out.Bytes, out.Repaired = sum.GetObjects(), sum.GetBytes(), sum.GetRepaired()
	if c.Bool("json") {
		err = writeJSON(c.Root().Writer, out)
	} else {
		_, err = fmt.Fprintf(c.Root().Writer, "%d images, %d layers, %d trees, %d objects (%s): %d problems, %d repaired\n",
			out.Images, out.Layers, out.Trees, out.Objects, size(out.Bytes), sum.GetProblems(), out.Repaired)
	}
	if left := sum.GetProblems() - sum.GetRepaired(); err == nil && left > 0 {
		err = fmt.Errorf("%d problems are left", left)
		if !c.Bool("repair") {
			err = fmt.Errorf("%w, see ctr-starlight fsck --repair", err)
		}
	}
	return err
}

func dfCommand() *cli.Command {
	return &cli.Command{
		Name:   "df",
		Usage:  "show what is on the disk",
		Flags:  []cli.Flag{jsonFlag("a JSON array")},
		Action: connect(df),
	}
}

type usageJSON struct {
	Category string `json:"category"`
	Path     string `json:"path"`
	Files    int64  `json:"files"`
	Bytes    int64  `json:"bytes"`
}

func df(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	resp, err := client.DiskUsage(ctx, &api.DiskUsageRequest{})
	if err != nil {
		return said(ctx, err)
	}
	out := []usageJSON{}
	rows := [][]string{{"CATEGORY", "FILES", "SIZE", "PATH"}}
	var files, bytes int64
	for _, u := range resp.GetUsages() {
		out = append(out, usageJSON{u.GetCategory(), u.GetPath(), u.GetFiles(), u.GetBytes()})
		rows = append(rows, []string{u.GetCategory(), strconv.FormatInt(u.GetFiles(), 10), size(u.GetBytes()), u.GetPath()})
		files, bytes = files+u.GetFiles(), bytes+u.GetBytes()
	}
	if c.Bool("json") {
		return writeJSON(c.Root().Writer, out)
	}
	return table(c.Root().Writer, append(rows, []string{"total", strconv.FormatInt(files, 10), size(bytes), ""}))
}

func gcCommand() *cli.Command {
	return &cli.Command{
		Name:  "gc",
		Usage: "remove now what no image and no container needs",
		Description: "containerd does this by itself, some time after an image was removed.\n" +
			"It is done for all namespaces: they share contents.",
		Flags:  []cli.Flag{jsonFlag("a JSON object")},
		Action: connect(collect),
	}
}

func collect(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	r, err := client.Collect(ctx, &api.CollectRequest{})
	if err != nil {
		return said(ctx, err)
	}
	if c.Bool("json") {
		return writeJSON(c.Root().Writer, struct {
			Images  int64 `json:"images"`
			Objects int64 `json:"objects"`
			Bytes   int64 `json:"bytes"`
		}{r.GetImages(), r.GetObjects(), r.GetBytes()})
	}
	_, err = fmt.Fprintf(c.Root().Writer, "freed %s: %d objects of %d images\n", size(r.GetBytes()), r.GetObjects(), r.GetImages())
	return err
}
