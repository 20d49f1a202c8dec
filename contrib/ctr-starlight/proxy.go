package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

func proxyCommand() *cli.Command {
	return &cli.Command{
		Name:  "proxy",
		Usage: "the configured proxies",
		Commands: []*cli.Command{
			{
				Name: "ls", Aliases: []string{"list"},
				Usage:  "list the proxies; the first that serves a registry is asked",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print a JSON array"}},
				Action: connect(listProxies),
			},
			{
				Name: "ping", Aliases: []string{"test"},
				Usage:     "measure round trips from this node's containerd to a proxy, or to all",
				ArgsUsage: "[ADDRESS]",
				Flags: []cli.Flag{
					&cli.IntFlag{Name: "count", Aliases: []string{"c"}, Value: 3, Usage: "round trips for each proxy"},
					jsonFlag("a JSON array of the proxies that answer"),
				},
				Action:        connect(pingProxies),
				ShellComplete: completeProxies,
			},
			{
				Name:      "add",
				Usage:     "add a proxy after the others, until containerd ends",
				ArgsUsage: "ADDRESS",
				Description: "The configuration stays what it is, and so does what containerd does after its next start: the lines\n" +
					"that keep the proxy are printed. Files are on the node, as in the configuration.",
				Flags: []cli.Flag{
					&cli.StringSliceFlag{Name: "registry", Usage: "pattern of the registries that it serves (default: all)", HideDefault: true},
					&cli.StringFlag{Name: "ca", Usage: "file of the authorities of its certificate"},
					&cli.StringFlag{Name: "cert", Usage: "file of the client certificate to show"},
					&cli.StringFlag{Name: "key", Usage: "file of its key"},
					&cli.StringFlag{Name: "token-file", Usage: "file of the token to show"},
				},
				Action: connect(addProxy),
			},
			{
				Name: "rm", Aliases: []string{"remove"},
				Usage:         "ask a proxy no more, until containerd ends",
				ArgsUsage:     "ADDRESS",
				Action:        connect(removeProxy),
				ShellComplete: completeProxies,
			},
		},
		Action: noSuchCommand,
	}
}

// oldProxyCommands are the names that commands of proxy had once.
func oldProxyCommands() []*cli.Command {
	var out []*cli.Command
	for _, sub := range proxyCommand().Commands {
		if old, ok := map[string]string{"add": "add-proxy", "ls": "list-proxy", "ping": "test"}[sub.Name]; ok {
			sub.Name, sub.Aliases, sub.Hidden = old, nil, true
			out = append(out, sub)
		}
	}
	return out
}

func completeProxies(ctx context.Context, c *cli.Command) {
	cli.DefaultCompleteWithFlags(ctx, c)
	offer(ctx, c, func(ctx context.Context, client api.StarlightClient) []string {
		addresses, _ := proxyAddresses(ctx, client)
		return addresses
	})
}

func addProxy(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	r := &api.AddProxyRequest{
		Address: c.Args().First(), Registries: c.StringSlice("registry"),
		Ca: c.String("ca"), Cert: c.String("cert"), Key: c.String("key"), TokenFile: c.String("token-file"),
	}
	if _, err := client.AddProxy(ctx, r); err != nil {
		return said(ctx, err)
	}
	_, err := fmt.Fprintf(c.Root().Writer, "added until containerd ends. To keep it, append to /etc/containerd/config.toml:\n\n%s", proxyTOML(r))
	return err
}

// proxyTOML is a proxy as the configuration has it.
func proxyTOML(r *api.AddProxyRequest) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[[plugins.'io.containerd.starlight.v1.engine'.proxies]]\n  address = %q\n", r.GetAddress())
	if len(r.GetRegistries()) > 0 {
		q := make([]string, len(r.GetRegistries()))
		for i, s := range r.GetRegistries() {
			q[i] = fmt.Sprintf("%q", s)
		}
		fmt.Fprintf(&b, "  registries = [%s]\n", strings.Join(q, ", "))
	}
	for _, f := range [][2]string{{"ca", r.GetCa()}, {"cert", r.GetCert()}, {"key", r.GetKey()}, {"token_file", r.GetTokenFile()}} {
		if f[1] != "" {
			fmt.Fprintf(&b, "  %s = %q\n", f[0], f[1])
		}
	}
	return b.String()
}

func removeProxy(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	r, err := client.RemoveProxy(ctx, &api.RemoveProxyRequest{Address: c.Args().First()})
	if err != nil {
		return said(ctx, err)
	}
	line := "removed"
	if r.GetConfigured() {
		line = "removed until containerd ends; it is in /etc/containerd/config.toml, take it out there, too"
	}
	_, err = fmt.Fprintln(c.Root().Writer, line)
	return err
}

const noProxies = "no proxies are configured: every image is pulled as stock containerd does. " +
	"Add [[plugins.'io.containerd.starlight.v1.engine'.proxies]] to /etc/containerd/config.toml"

type proxyJSON struct {
	Address    string   `json:"address"`
	Registries []string `json:"registries"`
	Added      bool     `json:"added"`
}

func listProxies(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	resp, err := client.Proxies(ctx, &api.ProxiesRequest{})
	if err != nil {
		return said(ctx, err)
	}
	if c.Bool("json") {
		out := make([]proxyJSON, 0, len(resp.GetProxies()))
		for _, p := range resp.GetProxies() {
			out = append(out, proxyJSON{p.GetAddress(), append([]string{}, p.GetRegistries()...), p.GetAdded()})
		}
		return writeJSON(c.Root().Writer, out)
	}
	if len(resp.GetProxies()) == 0 {
		_, err := fmt.Fprintln(c.Root().ErrWriter, noProxies)
		return err
	}
	rows := [][]string{{"ADDRESS", "REGISTRIES"}}
	for _, p := range resp.GetProxies() {
		rows = append(rows, []string{p.GetAddress(), strings.Join(p.GetRegistries(), ",")})
	}
	return table(c.Root().Writer, rows)
}

func proxyAddresses(ctx context.Context, client api.StarlightClient) ([]string, error) {
	resp, err := client.Proxies(ctx, &api.ProxiesRequest{})
	if err != nil {
		return nil, said(ctx, err)
	}
	var out []string
	for _, p := range resp.GetProxies() {
		out = append(out, p.GetAddress())
	}
	return out, nil
}

// pingProxies goes on after a failure: the other proxies are what one wants to
// know about then.
func pingProxies(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	if c.Int("count") < 1 {
		return fmt.Errorf("--count %d is not positive", c.Int("count"))
	}
	addresses := c.Args().Slice()
	if len(addresses) == 0 {
		var err error
		if addresses, err = proxyAddresses(ctx, client); err != nil {
			return err
		}
		if len(addresses) == 0 {
			return errors.New(noProxies)
		}
	}
	var failed []error
	answered := []pingJSON{}
	for _, a := range addresses {
		r, err := pingProxy(ctx, client, a, c.Int("count"))
		if err != nil {
			failed = append(failed, err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if answered = append(answered, *r); c.Bool("json") {
			continue
		}
		if _, err := fmt.Fprintln(c.Root().Writer, printable(r.line())); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		failed = append(failed, writeJSON(c.Root().Writer, answered))
	}
	return errors.Join(failed...)
}

// pingJSON is what ping --json tells of a proxy that answers; times in seconds.
type pingJSON struct {
	Address  string  `json:"address"`
	Min      float64 `json:"min"`
	Avg      float64 `json:"avg"`
	Max      float64 `json:"max"`
	Count    int     `json:"count"`
	Version  string  `json:"version"`
	Protocol int32   `json:"protocol"`
}

func (p *pingJSON) line() string {
	return fmt.Sprintf("%s  min/avg/max %.1f/%.1f/%.1f ms over %d  proxyd %s  protocol %d", p.Address,
		p.Min*1000, p.Avg*1000, p.Max*1000, p.Count, p.Version, p.Protocol)
}

func pingProxy(ctx context.Context, client api.StarlightClient, address string, count int) (*pingJSON, error) {
	var least, most, total time.Duration
	var last *api.PingResponse
	for i := range count {
		r, err := client.Ping(ctx, &api.PingRequest{Address: address})
		if err != nil {
			return nil, fmt.Errorf("ping %s: %w", address, said(ctx, err))
		}
		rtt := r.GetRoundTrip().AsDuration()
		if i == 0 || rtt < least {
			least = rtt
		}
		most, total, last = max(most, rtt), total+rtt, r
	}
	return &pingJSON{
		Address: address, Min: least.Seconds(), Avg: (total / time.Duration(count)).Seconds(), Max: most.Seconds(),
		Count: count, Version: last.GetVersion(), Protocol: last.GetProtocol(),
	}, nil
}
