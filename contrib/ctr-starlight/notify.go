package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v3"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

func notifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "notify",
		Usage:     "have the proxies index an image, so that its first pull is a fast one",
		ArgsUsage: "REF",
		Description: "REF is a full name, such as docker.io/library/redis:7. All proxies that serve its registry read the image.\n" +
			"The password of --user is best given in the environment: CTR_STARLIGHT_USER=user:password",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "platform", Usage: "os/arch[/variant] (default: that of the node)", HideDefault: true},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "user:password for the registry", Sources: cli.EnvVars("CTR_STARLIGHT_USER")},
			jsonFlag("a JSON array of the proxies that have the image"),
		},
		Action:        connect(notify),
		ShellComplete: completeRefs,
	}
}

func notify(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	user, secret, _ := strings.Cut(c.String("user"), ":")
	out, err := index(ctx, c, client, &api.NotifyRequest{
		Ref: c.Args().First(), Platform: c.String("platform"), Username: user, Secret: secret,
	}, func(proxy string) error {
		if c.Bool("json") {
			return nil
		}
		_, err := fmt.Fprintln(c.Root().Writer, printable(proxy+" has indexed "+c.Args().First()))
		return err
	})
	if err == nil && c.Bool("json") {
		err = writeJSON(c.Root().Writer, out)
	}
	return err
}

// index has the proxies of a registry index an image, and returns those that have it.
// each is told of them one by one.
func index(ctx context.Context, c *cli.Command, client api.StarlightClient, r *api.NotifyRequest, each func(proxy string) error) ([]string, error) {
	stream, err := client.Notify(ctx, r)
	if err != nil {
		return nil, said(ctx, err)
	}
	out := []string{}
	for {
		r, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return out, said(ctx, err)
		case r.GetIndexed():
			out = append(out, r.GetProxy())
			if err := each(r.GetProxy()); err != nil {
				return out, err
			}
		case isTerminal(c.Root().ErrWriter):
			_, _ = fmt.Fprintf(c.Root().ErrWriter, "\r\x1b[K%s reads %s\r", printable(r.GetProxy()), sizes(r.GetDone(), r.GetTotal()))
		}
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && terminal(f)
}
