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
				Name:      "ping",
				Usage:     "measure round trips from this node's containerd to a proxy, or to all",
				ArgsUsage: "[ADDRESS]",
				Flags:     []cli.Flag{&cli.IntFlag{Name: "count", Aliases: []string{"c"}, Value: 3, Usage: "round trips for each proxy"}},
				Action:    connect(pingProxies),
				ShellComplete: func(ctx context.Context, c *cli.Command) {
					cli.DefaultCompleteWithFlags(ctx, c)
					offer(ctx, c, func(ctx context.Context, client api.StarlightClient) []string {
						addresses, _ := proxyAddresses(ctx, client)
						return addresses
					})
				},
			},
		},
		Action: noSuchCommand,
	}
}

const noProxies = "no proxies are configured: every image is pulled as stock containerd does. " +
	"Add [[plugins.'io.containerd.starlight.v1.engine'.proxies]] to /etc/containerd/config.toml"

type proxyJSON struct {
	Address    string   `json:"address"`
	Registries []string `json:"registries"`
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
			out = append(out, proxyJSON{p.GetAddress(), append([]string{}, p.GetRegistries()...)})
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
	for _, a := range addresses {
		line, err := pingProxy(ctx, client, a, c.Int("count"))
		if err != nil {
			failed = append(failed, err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if _, err := fmt.Fprintln(c.Root().Writer, printable(line)); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

func pingProxy(ctx context.Context, client api.StarlightClient, address string, count int) (string, error) {
	var least, most, total time.Duration
	var last *api.PingResponse
	for i := range count {
		r, err := client.Ping(ctx, &api.PingRequest{Address: address})
		if err != nil {
			return "", fmt.Errorf("ping %s: %w", address, said(ctx, err))
		}
		rtt := r.GetRoundTrip().AsDuration()
		if i == 0 || rtt < least {
			least = rtt
		}
		most, total, last = max(most, rtt), total+rtt, r
	}
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return fmt.Sprintf("%s  min/avg/max %.1f/%.1f/%.1f ms over %d  proxyd %s  protocol %d", address,
		ms(least), ms(total/time.Duration(count)), ms(most), count, last.GetVersion(), last.GetProtocol()), nil
}
