package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/urfave/cli/v3"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the versions of this program and of containerd",
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			// Known without containerd, so said before trouble with it.
			_, err := fmt.Fprintf(c.Root().Writer, "Client:\n  Version:  %s\n  Revision: %s\n  Go:       %s\n\n", version, commit, runtime.Version())
			if err != nil {
				return err
			}
			return connect(serverVersion)(ctx, c)
		},
	}
}

func serverVersion(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	v, err := client.Version(ctx, &api.VersionRequest{})
	if err != nil {
		return said(ctx, err)
	}
	_, err = fmt.Fprintf(c.Root().Writer, "Server:\n  Version:  %s\n  Revision: %s\n", printable(v.GetVersion()), printable(v.GetRevision()))
	return err
}
