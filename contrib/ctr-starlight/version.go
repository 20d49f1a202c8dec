package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/urfave/cli/v3"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:   "version",
		Usage:  "print the versions of this program and of containerd",
		Flags:  []cli.Flag{jsonFlag("a JSON object")},
		Action: showVersion,
	}
}

// versionJSON is the output of version --json; server is null without containerd.
type versionJSON struct {
	Client versionOf  `json:"client"`
	Server *versionOf `json:"server"`
}

type versionOf struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
}

func showVersion(ctx context.Context, c *cli.Command) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	out := versionJSON{Client: versionOf{version, commit}}
	if !c.Bool("json") {
		// Known without containerd, so said before trouble with it.
		if _, err := fmt.Fprintf(c.Root().Writer, "Client:\n  Version:  %s\n  Revision: %s\n  Go:       %s\n\n", version, commit, runtime.Version()); err != nil {
			return err
		}
	}
	err := connect(func(ctx context.Context, _ *cli.Command, client api.StarlightClient) error {
		v, err := client.Version(ctx, &api.VersionRequest{})
		if err != nil {
			return said(ctx, err)
		}
		out.Server = &versionOf{v.GetVersion(), v.GetRevision()}
		return nil
	})(ctx, c)
	if c.Bool("json") {
		return errors.Join(writeJSON(c.Root().Writer, out), err)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.Root().Writer, "Server:\n  Version:  %s\n  Revision: %s\n", printable(out.Server.Version), printable(out.Server.Revision))
	return err
}
