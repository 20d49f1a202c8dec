package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

const snapshotter = "starlight"

func resetCommand() *cli.Command {
	return &cli.Command{
		Name:  "reset",
		Usage: "remove all that was pulled through Starlight",
		Description: "While containerd runs, the images that were pulled into the snapshotter starlight are removed, under all their\n" +
			"names and in all namespaces, and all that they leave; what other images and containers use stays. If containerd\n" +
			"was stopped, the directory of the snapshotter is unmounted and removed.\n" +
			"It lists and asks first, and refuses while containers use the snapshotter. It ends nothing.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"},
			&cli.BoolFlag{Name: "dry-run", Usage: "list only"},
			&cli.StringFlag{Name: "root", Value: "/var/lib/containerd/io.containerd.snapshotter.v1.starlight", Usage: "directory of the snapshotter, if containerd was stopped"},
		},
		Action: reset,
	}
}

func reset(ctx context.Context, c *cli.Command) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	if c.String("namespace") != "" {
		return errors.New("namespaces share contents: reset is for all of them, and takes no --namespace")
	}
	address := strings.TrimPrefix(c.String("address"), "unix://")
	err := await(ctx, address, c.Duration("connect-timeout"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return resetDirectory(c, c.String("root"))
	}
	return dial(resetImages)(ctx, c)
}

// named is an image, or a snapshot, in a namespace.
type named struct{ namespace, name string }

// holdings is what reset would remove, and what is in its way.
type holdings struct {
	remove []named
	keep   []string // images, and why
	block  []string // what must go first, and how
}

func resetImages(ctx context.Context, c *cli.Command, conn *grpc.ClientConn) error {
	client, err := containerd.NewWithConn(conn)
	if err != nil {
		return err
	}
	service := api.NewStarlightClient(conn)
	h, err := survey(ctx, client, service)
	if err != nil {
		return err
	}
	if len(h.block) > 0 {
		return fmt.Errorf("the snapshotter is in use:\n%s", strings.Join(h.block, "\n"))
	}
	before, err := occupied(ctx, service)
	if err != nil {
		return err
	}
	out := c.Root().Writer
	for _, i := range h.remove {
		if _, err := fmt.Fprintln(out, printable("remove image "+i.name+" in namespace "+i.namespace)); err != nil {
			return err
		}
	}
	for _, k := range h.keep {
		if _, err := fmt.Fprintln(out, printable("keep image "+k)); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(out, "remove what then nothing needs of %s on the disk\n", size(before)); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return nil
	}
	if ok, err := confirm(c, "remove?"); err != nil || !ok {
		return err
	}
	for _, i := range h.remove {
		err := client.ImageService().Delete(namespaces.WithNamespace(ctx, i.namespace), i.name)
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove image %s: %w", i.name, said(ctx, err))
		}
	}
	if _, err := service.Collect(ctx, &api.CollectRequest{}); err != nil {
		return said(ctx, err)
	}
	after, err := occupied(ctx, service)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "removed %d images, %s are left on the disk: what is kept, traces, and an empty database\n", len(h.remove), size(after)); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "to take these out, too: stop containerd, and ctr-starlight reset again")
	return err
}

// occupied is how much Starlight has on the disk.
func occupied(ctx context.Context, service api.StarlightClient) (n int64, err error) {
	r, err := service.DiskUsage(ctx, &api.DiskUsageRequest{})
	if err != nil {
		return 0, said(ctx, err)
	}
	for _, u := range r.GetUsages() {
		n += u.GetBytes()
	}
	return n, nil
}

// survey looks through all namespaces.
func survey(ctx context.Context, client *containerd.Client, service api.StarlightClient) (*holdings, error) {
	st, err := service.Status(ctx, &api.StatusRequest{})
	if err != nil {
		return nil, said(ctx, err)
	}
	targets := map[named]bool{} // by namespace and digest
	names := map[named]bool{}
	for _, i := range st.GetImages() {
		names[named{i.GetNamespace(), i.GetRef()}] = true
		if i.GetTarget() != "" {
			targets[named{i.GetNamespace(), i.GetTarget()}] = true
		}
	}
	spaces, err := client.NamespaceService().List(ctx)
	if err != nil {
		return nil, said(ctx, err)
	}
	h := &holdings{}
	for _, ns := range spaces {
		nctx := namespaces.WithNamespace(ctx, ns)
		users, err := h.containers(nctx, client, ns)
		if err != nil {
			return nil, err
		}
		all, err := client.ImageService().List(nctx)
		if err != nil {
			return nil, said(ctx, err)
		}
		for _, img := range all {
			n := named{ns, img.Name}
			switch user := users[img.Name]; {
			case !names[n] && !targets[named{ns, img.Target.Digest.String()}]:
			case user != "":
				h.keep = append(h.keep, fmt.Sprintf("%s in namespace %s: container %s uses it with another snapshotter", img.Name, ns, user))
			default:
				h.remove = append(h.remove, n)
			}
		}
	}
	return h, nil
}

// containers notes who uses the snapshotter, and returns which images the containers use
// that do not.
func (h *holdings) containers(ctx context.Context, client *containerd.Client, ns string) (users map[string]string, err error) {
	all, err := client.ContainerService().List(ctx)
	if err != nil {
		return nil, said(ctx, err)
	}
	users = map[string]string{}
	known := map[string]bool{} // keys of snapshots
	for _, c := range all {
		if c.Snapshotter != snapshotter {
			users[c.Image] = c.ID
			continue
		}
		known[c.SnapshotKey] = true
		h.block = append(h.block, fmt.Sprintf("container %s in namespace %s: ctr -n %s containers rm %s, or remove its pod", c.ID, ns, ns, c.ID))
	}
	err = client.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind != snapshots.KindCommitted && !known[i.Name] {
			h.block = append(h.block, fmt.Sprintf("snapshot %s in namespace %s, of no container (a pull under way, or a mount): ctr -n %s snapshots --snapshotter %s rm %s",
				i.Name, ns, ns, snapshotter, i.Name))
		}
		return nil
	})
	if err != nil {
		return nil, said(ctx, err)
	}
	slices.Sort(h.block)
	return users, nil
}
