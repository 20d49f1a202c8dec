// Command ctr-starlight shows what Starlight does on a node: which images came as a
// delta, how much of them is local, and how far the proxies are. It speaks the
// Starlight API on containerd's socket, with the flags of ctr.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
)

// Set by the linker.
var (
	version = "devel"
	commit  = "unknown"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes a command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if err := app(stdout, stderr).Run(ctx, args); err != nil {
		for line := range strings.Lines(explain(err)) {
			_, _ = fmt.Fprintln(stderr, "ctr-starlight: "+strings.TrimSpace(printable(line)))
		}
		return 1
	}
	return 0
}

func app(stdout, stderr io.Writer) *cli.Command {
	root := &cli.Command{
		Name:      "ctr-starlight",
		Usage:     "delta pulls and lazy starts of this node's containerd",
		Version:   version,
		Writer:    stdout,
		ErrWriter: stderr,
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: "address", Aliases: []string{"a"}, Value: "/run/containerd/containerd.sock",
				Usage: "socket of containerd", Sources: cli.EnvVars("CONTAINERD_ADDRESS"),
			},
			&cli.StringFlag{
				Name: "namespace", Aliases: []string{"n"},
				Usage: "namespace of containerd (default: all)", Sources: cli.EnvVars("CONTAINERD_NAMESPACE"),
			},
			&cli.DurationFlag{Name: "timeout", HideDefault: true, Usage: "give up after this time (default: never)"},
			&cli.DurationFlag{Name: "connect-timeout", HideDefault: true, Usage: "wait this long for containerd to listen (default: not at all)"},
		},
		Commands:              commands(),
		EnableShellCompletion: true,
		ConfigureShellCompletionCommand: func(c *cli.Command) {
			c.Hidden = false
		},
		Action:         noSuchCommand,
		ExitErrHandler: func(context.Context, *cli.Command, error) {}, // run reports and picks the code
	}
	setUsageError(root)
	return root
}

// The groups of the help.
const (
	groupImages = "Images"
	groupTraces = "Order of sending"
	groupNode   = "Node"
)

func commands() []*cli.Command {
	var all []*cli.Command
	for _, g := range []struct {
		name     string
		commands []*cli.Command
	}{
		{groupImages, []*cli.Command{pullCommand(), statusCommand(), waitCommand(), deltaCommand(), notifyCommand(), convertCommand()}},
		{groupTraces, []*cli.Command{optimizerCommand(), reportCommand(), traceCommand()}},
		{groupNode, []*cli.Command{installCommand(), uninstallCommand(), proxyCommand(), doctorCommand(), fsckCommand(), dfCommand(), gcCommand(), resetCommand(), versionCommand()}},
		{"", oldProxyCommands()},
	} {
		for _, c := range g.commands {
			c.Category = g.name
			all = append(all, c)
		}
	}
	return all
}

// setUsageError makes c and its subcommands answer wrong flags with one line and
// not with two pages.
func setUsageError(c *cli.Command) {
	c.OnUsageError = usageError
	for _, sub := range c.Commands {
		setUsageError(sub)
	}
}

// noSuchCommand is the action of commands that have subcommands.
func noSuchCommand(_ context.Context, c *cli.Command) error {
	if name := c.Args().First(); name != "" {
		return fmt.Errorf("no command %q, see %s --help", name, c.FullName())
	}
	if c.Root() == c {
		return cli.ShowRootCommandHelp(c)
	}
	return cli.ShowSubcommandHelp(c)
}

func usageError(_ context.Context, c *cli.Command, err error, _ bool) error {
	return fmt.Errorf("%w, see %s --help", err, c.FullName())
}

// arguments checks how many there are.
func arguments(c *cli.Command, least, most int) error {
	switch n := c.Args().Len(); {
	case n < least:
		return fmt.Errorf("argument %s is missing, see %s --help", c.ArgsUsage, c.FullName())
	case n > most:
		return fmt.Errorf("unexpected argument %q, see %s --help", c.Args().Get(most), c.FullName())
	}
	return nil
}

// timeout applies --timeout.
func timeout(ctx context.Context, c *cli.Command) (context.Context, context.CancelFunc) {
	d := c.Duration("timeout")
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("timed out after %s (--timeout)", d))
}
