package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	imagestore "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/urfave/cli/v3"
	"golang.org/x/sync/errgroup"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

func pullCommand() *cli.Command {
	return &cli.Command{
		Name:      "pull",
		Usage:     "pull images, all at once, so that containers can start",
		ArgsUsage: "REF…",
		Description: "REF is a full name, such as docker.io/library/redis:7. As ctr image pull --snapshotter starlight, by the transfer\n" +
			"service: the rest of the contents comes after the command has ended, unless --wait is given.\n" +
			"The password of --user is best given in the environment: CTR_STARLIGHT_USER=user:password",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "wait", Usage: "wait until all contents are local"},
			&cli.StringFlag{Name: "platform", HideDefault: true, Usage: "os/arch[/variant] (default: that of the node)"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "user:password for the registries", Sources: cli.EnvVars("CTR_STARLIGHT_USER")},
			&cli.StringFlag{Name: "hosts-dir", Usage: "directory of hosts.toml files"},
			&cli.BoolFlag{Name: "plain-http", Usage: "speak HTTP without TLS to the registries"},
			jsonFlag("a JSON array, as of status"),
		},
		Action:        connect(pull),
		ShellComplete: completeRefs,
	}
}

// login gives what --user says to each registry that asks.
type login struct{ user string }

// GetCredentials implements registry.CredentialHelper.
func (l login) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	user, secret, _ := strings.Cut(l.user, ":")
	return registry.Credentials{Host: host, Username: user, Secret: secret}, nil
}

func pull(ctx context.Context, c *cli.Command, service api.StarlightClient) error {
	if err := arguments(c, 1, 100); err != nil {
		return err
	}
	platform := platforms.DefaultSpec()
	if p := c.String("platform"); p != "" {
		var err error
		if platform, err = platforms.Parse(p); err != nil {
			return err
		}
	}
	ns := c.String("namespace")
	if ns == "" {
		ns = namespaces.Default
	}
	client, err := containerd.New(strings.TrimPrefix(c.String("address"), "unix://"), containerd.WithDefaultNamespace(ns))
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // it was only asked
	opts := []registry.Opt{registry.WithHostDir(c.String("hosts-dir"))}
	if c.String("user") != "" {
		opts = append(opts, registry.WithCredentials(login{c.String("user")}))
	}
	if c.Bool("plain-http") {
		opts = append(opts, registry.WithDefaultScheme("http"))
	}
	refs := c.Args().Slice()
	g, gctx := errgroup.WithContext(namespaces.WithNamespace(ctx, ns))
	for _, ref := range refs {
		g.Go(func() error {
			src, err := registry.NewOCIRegistry(gctx, ref, opts...)
			if err != nil {
				return fmt.Errorf("%s: %w", ref, err)
			}
			dst := image.NewStore(ref, image.WithPlatforms(platform), image.WithUnpack(platform, "starlight"), image.WithAllMetadata)
			if err := client.Transfer(gctx, src, dst); err != nil {
				return fmt.Errorf("pull %s: %w", ref, said(ctx, err))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	out := []imageJSON{}
	for _, ref := range refs {
		if c.Bool("wait") {
			if err := waitFor(ctx, c, service, ns, ref); err != nil {
				return err
			}
		}
		r, err := service.Status(ctx, &api.StatusRequest{Ref: ref, Namespace: ns})
		if err != nil {
			return said(ctx, err)
		}
		for _, i := range r.GetImages() {
			if out = append(out, asJSON(i)); c.Bool("json") {
				continue
			}
			whole, err := layers(namespaces.WithNamespace(ctx, ns), client, ref, platform)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(c.Root().Writer, printable(pulled(i, whole))); err != nil {
				return err
			}
		}
	}
	if c.Bool("json") {
		return writeJSON(c.Root().Writer, out)
	}
	return nil
}

// waitFor shows how an image comes until all of it is local.
func waitFor(ctx context.Context, c *cli.Command, service api.StarlightClient, ns, ref string) error {
	stream, err := service.Wait(ctx, &api.WaitRequest{Ref: ref, Namespace: ns})
	if err != nil {
		return said(ctx, err)
	}
	show := newProgress(c.Root().Writer, c.Bool("json"))
	defer show.end()
	var last *api.Image
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return unfinished(last, said(ctx, err))
		}
		last = r.GetImage()
		show.update(last)
	}
}

// layers is how many bytes a plain pull of the image would have brought.
func layers(ctx context.Context, client *containerd.Client, ref string, p platforms.Platform) (n int64, err error) {
	img, err := client.ImageService().Get(ctx, ref)
	if err != nil {
		return 0, err
	}
	m, err := imagestore.Manifest(ctx, client.ContentStore(), img.Target, platforms.OnlyStrict(p))
	if err != nil {
		return 0, err
	}
	for _, l := range m.Layers {
		n += l.Size
	}
	return n, nil
}

// pulled is what is told of an image when the command ends.
func pulled(i *api.Image, whole int64) string {
	if i.GetMode() != api.Mode_MODE_DELTA {
		return fmt.Sprintf("%s pulled as stock containerd does: %s", i.GetRef(), i.GetReason())
	}
	line := fmt.Sprintf("%s ready after %.1f s", i.GetRef(), i.GetReadyAfter().AsDuration().Seconds())
	if !i.GetComplete() {
		return fmt.Sprintf("%s, %.0f%% is local: ctr-starlight wait %s", line, percent(i), i.GetRef())
	}
	line = fmt.Sprintf("%s, complete after %.1f s, %s on the wire", line, i.GetDoneAfter().AsDuration().Seconds(), size(i.GetWireBytes()))
	if saved := whole - i.GetWireBytes(); saved > 0 {
		line += fmt.Sprintf(", %s (%d%%) less than the plain image", size(saved), saved*100/whole)
	}
	return line
}
