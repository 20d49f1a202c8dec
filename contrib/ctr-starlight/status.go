package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v3"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "show images, how they were pulled, and how much of them is local",
		ArgsUsage: "[REF]",
		Description: "REF is the name that ctr image ls shows, such as docker.io/library/redis:7.\n" +
			"Mode delta: by a proxy; mode plain: as stock containerd does, and REASON says why.\n" +
			"WIRE is what came from the proxy for this image.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "missing", Usage: "name the files of REF that have not arrived, in the order of their names"},
			&cli.IntFlag{Name: "limit", Value: 100, Usage: "most names with --missing"},
			&cli.BoolFlag{Name: "json", Usage: "print a JSON array"},
		},
		Action:        connect(showStatus),
		ShellComplete: completeRefs,
	}
}

// imageJSON is the output of status --json. Scripts rely on it: fields may be
// added, and never change.
type imageJSON struct {
	Namespace    string     `json:"namespace"`
	Ref          string     `json:"ref"`
	Target       string     `json:"target"`
	Mode         string     `json:"mode"`
	Reason       string     `json:"reason"`
	Proxy        string     `json:"proxy"`
	Complete     bool       `json:"complete"`
	Percent      float64    `json:"percent"`
	Objects      int64      `json:"objects"`
	ObjectsLocal int64      `json:"objectsLocal"`
	Bytes        int64      `json:"bytes"`
	BytesLocal   int64      `json:"bytesLocal"`
	WireBytes    int64      `json:"wireBytes"`
	Rate         float64    `json:"rate"` // bytes a second
	RoundTrips   int64      `json:"roundTrips"`
	Pulled       *time.Time `json:"pulled"`
	ReadySeconds float64    `json:"readySeconds"`
	DoneSeconds  float64    `json:"doneSeconds"`
	Vouched      bool       `json:"vouched"` // the manifest names the TOCs of all layers
}

func showStatus(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	if c.Bool("missing") {
		return showMissing(ctx, c, client)
	}
	resp, err := client.Status(ctx, &api.StatusRequest{Ref: c.Args().First(), Namespace: c.String("namespace")})
	if err != nil {
		return said(ctx, err)
	}
	if c.Bool("json") {
		out := make([]imageJSON, 0, len(resp.GetImages()))
		for _, i := range resp.GetImages() {
			out = append(out, asJSON(i))
		}
		return writeJSON(c.Root().Writer, out)
	}
	if len(resp.GetImages()) == 0 {
		_, err := fmt.Fprintln(c.Root().ErrWriter, "No images. Pull one: ctr image pull --snapshotter starlight REF")
		return err
	}
	return table(c.Root().Writer, statusRows(resp.GetImages(), c.String("namespace") == ""))
}

type missingJSON struct {
	Names []string `json:"names"`
	Files int64    `json:"files"`
	Bytes int64    `json:"bytes"`
}

func showMissing(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if c.Args().Len() != 1 {
		return errors.New("--missing needs the REF of an image")
	}
	r, err := client.Missing(ctx, &api.MissingRequest{
		Ref: c.Args().First(), Namespace: c.String("namespace"), Limit: int32(max(0, c.Int("limit"))),
	})
	if err != nil {
		return said(ctx, err)
	}
	if c.Bool("json") {
		return writeJSON(c.Root().Writer, missingJSON{append([]string{}, r.GetNames()...), r.GetFiles(), r.GetBytes()})
	}
	for _, name := range r.GetNames() {
		if _, err := fmt.Fprintln(c.Root().Writer, printable(name)); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(c.Root().ErrWriter, "%d files have not arrived, %s\n", r.GetFiles(), size(r.GetBytes()))
	return err
}

func statusRows(images []*api.Image, namespaces bool) [][]string {
	row := func(namespace string, rest ...string) []string {
		if !namespaces {
			return rest
		}
		return append([]string{namespace}, rest...)
	}
	rows := [][]string{row("NAMESPACE", "REF", "MODE", "OBJECTS", "BYTES", "%", "RATE", "WIRE", "REASON")}
	for _, i := range images {
		objects, bytes, done, wire := "-", "-", "-", "-"
		if i.GetMode() == api.Mode_MODE_DELTA {
			objects = fmt.Sprintf("%d/%d", i.GetObjectsLocal(), i.GetObjects())
			bytes = sizes(i.GetBytesLocal(), i.GetBytes())
			done = fmt.Sprintf("%.0f", float64(int(percent(i))))
			wire = size(i.GetWireBytes())
		}
		reason := i.GetReason()
		if reason == "" {
			reason = "-"
		}
		rows = append(rows, row(i.GetNamespace(), i.GetRef(), mode(i.GetMode()), objects, bytes, done, rate(i.GetRate()), wire, reason))
	}
	return rows
}

func asJSON(i *api.Image) imageJSON {
	out := imageJSON{
		Namespace: i.GetNamespace(), Ref: i.GetRef(), Target: i.GetTarget(),
		Mode: mode(i.GetMode()), Reason: i.GetReason(), Proxy: i.GetProxy(),
		Complete: i.GetComplete(), Percent: percent(i),
		Objects: i.GetObjects(), ObjectsLocal: i.GetObjectsLocal(), Bytes: i.GetBytes(), BytesLocal: i.GetBytesLocal(),
		WireBytes: i.GetWireBytes(), Rate: i.GetRate(), RoundTrips: i.GetRoundTrips(),
		ReadySeconds: i.GetReadyAfter().AsDuration().Seconds(), DoneSeconds: i.GetDoneAfter().AsDuration().Seconds(),
		Vouched: i.GetVouched(),
	}
	if i.GetPulled() != nil {
		t := i.GetPulled().AsTime()
		out.Pulled = &t
	}
	return out
}

// completeRefs offers flags, and the references of images.
func completeRefs(ctx context.Context, c *cli.Command) {
	cli.DefaultCompleteWithFlags(ctx, c)
	offer(ctx, c, func(ctx context.Context, client api.StarlightClient) []string {
		resp, err := client.Status(ctx, &api.StatusRequest{Namespace: c.String("namespace")})
		if err != nil {
			return nil // a shell's completion has nowhere to tell
		}
		var refs []string
		for _, i := range resp.GetImages() {
			refs = append(refs, i.GetRef())
		}
		return refs
	})
}

// offer prints what list returns as completions. Failures are silence.
func offer(ctx context.Context, c *cli.Command, list func(context.Context, api.StarlightClient) []string) {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_ = connect(func(ctx context.Context, _ *cli.Command, client api.StarlightClient) error {
		for _, s := range list(ctx, client) {
			if _, err := fmt.Fprintln(c.Root().Writer, printable(s)); err != nil {
				return err
			}
		}
		return nil
	})(ctx, c)
}
