package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

// traced is the action of a command that needs the service of traces.
func traced(fn func(ctx context.Context, c *cli.Command, client api.TracesClient) error) cli.ActionFunc {
	return dial(func(ctx context.Context, c *cli.Command, conn *grpc.ClientConn) error {
		return fn(ctx, c, api.NewTracesClient(conn))
	})
}

func optimizerCommand() *cli.Command {
	return &cli.Command{
		Name:  "optimizer",
		Usage: "record what containers read while they start",
		Description: "While it is on, new containers are traced: all that they open goes through FUSE until they end, so that " +
			"it is for test deployments. Proxies that get the traces (see report) send first what was read first.",
		Commands: []*cli.Command{
			{
				Name:  "on",
				Usage: "trace the containers that are created from now on",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "group", Usage: "`name` of containers that are started together, for a joint order"},
					&cli.StringSliceFlag{Name: "image", Usage: "trace only containers of this `reference` or repository (may be repeated)"},
					&cli.DurationFlag{Name: "window", Value: time.Minute, Usage: "how long a start is traced"},
					&cli.BoolFlag{Name: "report", Usage: "report each trace when it ends"},
				},
				Action: traced(func(ctx context.Context, c *cli.Command, client api.TracesClient) error {
					return optimize(ctx, c, client, &api.Optimizer{
						On: true, Group: c.String("group"), Images: c.StringSlice("image"),
						Window: durationpb.New(c.Duration("window")), Report: c.Bool("report"),
					})
				}),
			},
			{
				Name:  "off",
				Usage: "trace no more; traces under way end",
				Action: traced(func(ctx context.Context, c *cli.Command, client api.TracesClient) error {
					return optimize(ctx, c, client, &api.Optimizer{})
				}),
			},
			{
				Name:  "status",
				Usage: "tell whether containers are traced",
				Action: traced(func(ctx context.Context, c *cli.Command, client api.TracesClient) error {
					return optimize(ctx, c, client, nil)
				}),
			},
		},
		Action: noSuchCommand,
	}
}

func optimize(ctx context.Context, c *cli.Command, client api.TracesClient, set *api.Optimizer) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	resp, err := client.Optimizer(ctx, &api.OptimizerRequest{Set: set})
	if err != nil {
		return said(ctx, err)
	}
	_, err = fmt.Fprintln(c.Root().Writer, printable(optimizerText(resp.GetOptimizer())))
	return err
}

func optimizerText(o *api.Optimizer) string {
	if !o.GetOn() {
		return "the optimizer is off"
	}
	out := fmt.Sprintf("the optimizer is on: the first %s of new containers are traced", o.GetWindow().AsDuration())
	if len(o.GetImages()) > 0 {
		out += ", of " + strings.Join(o.GetImages(), " and ")
	}
	if o.GetGroup() != "" {
		out += ", as the group " + strconv.Quote(o.GetGroup())
	}
	if o.GetReport() {
		out += ", and reported"
	}
	return out
}

func reportCommand() *cli.Command {
	return &cli.Command{
		Name:        "report",
		Usage:       "send recorded traces to the proxies",
		Description: "Traces that a proxy has accepted are removed. Ends with 1 if any is left.",
		Action:      traced(report),
	}
}

func report(ctx context.Context, c *cli.Command, client api.TracesClient) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	resp, err := client.Report(ctx, &api.ReportRequest{})
	if err != nil {
		return said(ctx, err)
	}
	if _, err := fmt.Fprintln(c.Root().Writer, "accepted traces:", resp.GetAccepted()); err != nil {
		return err
	}
	if resp.GetReason() != "" {
		return errors.New(resp.GetReason())
	}
	return nil
}

func traceCommand() *cli.Command {
	return &cli.Command{
		Name:  "trace",
		Usage: "traces that are not reported yet",
		Commands: []*cli.Command{
			{
				Name: "ls", Aliases: []string{"list"},
				Usage:     "list the traces",
				ArgsUsage: "[IMAGE]",
				Flags:     []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print a JSON array"}},
				Action:    traced(listTraces),
			},
			{
				Name:      "show",
				Usage:     "show what was read, in its order",
				ArgsUsage: "IMAGE|ID",
				Flags:     []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print a JSON object"}},
				Action:    traced(showTrace),
			},
		},
		Action: noSuchCommand,
	}
}

type traceJSON struct {
	ID       string       `json:"id"`
	Image    string       `json:"image"`
	Platform string       `json:"platform"`
	Group    string       `json:"group,omitempty"`
	Partial  bool         `json:"partial"`
	Started  time.Time    `json:"started"`
	Seconds  float64      `json:"seconds"`
	Objects  int64        `json:"objectsRead"`
	Bytes    int64        `json:"bytesRead"`
	Waited   float64      `json:"secondsWaited"`
	Read     []objectJSON `json:"read,omitempty"`
}

type objectJSON struct {
	Path   string     `json:"path"`
	Digest string     `json:"digest"`
	Size   int64      `json:"size"`
	After  float64    `json:"secondsAfterStart"`
	Waited float64    `json:"secondsWaited"`
	Ranges [][2]int64 `json:"ranges"`
}

func toJSON(t *api.Trace) traceJSON {
	return traceJSON{
		ID: t.GetId(), Image: t.GetImage(), Platform: t.GetPlatform(), Group: t.GetGroup(), Partial: t.GetPartial(),
		Started: t.GetStarted().AsTime(), Seconds: t.GetDuration().AsDuration().Seconds(),
		Objects: t.GetObjects(), Bytes: t.GetBytes(), Waited: t.GetWaited().AsDuration().Seconds(),
	}
}

func listTraces(ctx context.Context, c *cli.Command, client api.TracesClient) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	resp, err := client.List(ctx, &api.ListTracesRequest{Image: c.Args().First()})
	if err != nil {
		return said(ctx, err)
	}
	if c.Bool("json") {
		out := make([]traceJSON, 0, len(resp.GetTraces()))
		for _, t := range resp.GetTraces() {
			out = append(out, toJSON(t))
		}
		return writeJSON(c.Root().Writer, out)
	}
	rows := [][]string{{"ID", "IMAGE", "GROUP", "STARTED", "SAW", "OBJECTS", "READ", "WAITED"}}
	for _, t := range resp.GetTraces() {
		saw := "all"
		if t.GetPartial() {
			saw = "waits"
		}
		image, digest, _ := strings.Cut(t.GetImage(), "@")
		rows = append(rows, []string{
			t.GetId(), image + "@" + digest[:min(len(digest), 19)], t.GetGroup(), t.GetStarted().AsTime().Local().Format(time.DateTime), saw,
			strconv.FormatInt(t.GetObjects(), 10), size(t.GetBytes()), t.GetWaited().AsDuration().Round(time.Millisecond).String(),
		})
	}
	return table(c.Root().Writer, rows)
}

func showTrace(ctx context.Context, c *cli.Command, client api.TracesClient) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	stream, err := client.Show(ctx, &api.ShowTraceRequest{Trace: c.Args().First()})
	if err != nil {
		return said(ctx, err)
	}
	var out traceJSON
	rows := [][]string{{"AFTER", "WAITED", "READ", "OF", "PATH"}}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return said(ctx, err)
		}
		if r.GetTrace() != nil {
			out = toJSON(r.GetTrace())
		}
		for _, o := range r.GetObjects() {
			j := objectJSON{
				Path: o.GetPath(), Digest: o.GetDigest(), Size: o.GetSize(),
				After: o.GetAfter().AsDuration().Seconds(), Waited: o.GetWaited().AsDuration().Seconds(), Ranges: [][2]int64{},
			}
			read := int64(0)
			for _, x := range o.GetRanges() {
				j.Ranges = append(j.Ranges, [2]int64{x.GetOffset(), x.GetLength()})
				read += x.GetLength()
			}
			out.Read = append(out.Read, j)
			name := j.Path
			if name == "" {
				name = j.Digest
			}
			rows = append(rows, []string{
				o.GetAfter().AsDuration().Round(time.Millisecond).String(), o.GetWaited().AsDuration().Round(time.Millisecond).String(),
				size(read), size(j.Size), name,
			})
		}
	}
	if c.Bool("json") {
		return writeJSON(c.Root().Writer, out)
	}
	return table(c.Root().Writer, rows)
}
