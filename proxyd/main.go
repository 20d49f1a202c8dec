// Command proxyd stands near a registry and sends workers of Starlight what they
// lack of an image, in the order in which a starting container needs it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
)

// Set by the linker.
var (
	version = "dev"
	commit  = "unknown"
)

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2 // flags or configuration are wrong: starting again does not help
)

// errUsage is wrapped by errors that an operator has to correct.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The second signal kills: whoever sends it does not want to wait.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := newApp(stdout, stderr).RunContext(ctx, args)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "proxyd: %v\n", err)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "proxyd: %v\n", err)
		return exitFailure
	}
}

func newApp(stdout, stderr io.Writer) *cli.App {
	usage := func(_ *cli.Context, err error, _ bool) error { return fmt.Errorf("%w: %w", errUsage, err) }
	return &cli.App{
		Name:            "proxyd",
		Usage:           "delta pulls of container images for workers of Starlight",
		Version:         version,
		HideVersion:     true,
		Writer:          stdout,
		ErrWriter:       stderr,
		OnUsageError:    usage,
		ExitErrHandler:  func(*cli.Context, error) {}, // run decides
		CommandNotFound: nil,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("%w: no command %q", errUsage, c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			{
				Name:         "serve",
				Usage:        "serve workers until SIGTERM or SIGINT",
				OnUsageError: usage,
				Flags:        serveFlags(),
				Action: func(c *cli.Context) error {
					if c.Args().Present() {
						return fmt.Errorf("%w: unexpected argument %q", errUsage, c.Args().First())
					}
					cfg, err := configFrom(c)
					if err != nil {
						return fmt.Errorf("%w: %w", errUsage, err)
					}
					return serve(c.Context, cfg, newLogger(cfg, stderr))
				},
			},
			{
				Name:         "version",
				Usage:        "print version and commit",
				OnUsageError: usage,
				Action: func(*cli.Context) error {
					_, err := fmt.Fprintf(stdout, "proxyd %s %s\n", version, commit)
					return err
				},
			},
		},
	}
}

func serveFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "TOML `FILE`; flags and environment override it", EnvVars: []string{"PROXYD_CONFIG"}, TakesFile: true},
		&cli.StringFlag{Name: "listen", Usage: "`ADDR` to listen on (default \"" + Default().Listen + "\")", EnvVars: []string{"PROXYD_LISTEN"}},
		&cli.StringFlag{Name: "data-dir", Usage: "`DIR` for blobs, and for the database if that is SQLite", EnvVars: []string{"PROXYD_DATA_DIR"}},
		&cli.StringFlag{Name: "db", Usage: "`URL` of a Postgres database (default: SQLite in the data directory)", EnvVars: []string{"PROXYD_DB"}},
		&cli.StringSliceFlag{Name: "plain-http-registry", Usage: "`HOST[:PORT]` of a registry that speaks HTTP without TLS; can be repeated", EnvVars: []string{"PROXYD_PLAIN_HTTP_REGISTRY"}},
		&cli.StringSliceFlag{Name: "registry", Usage: "`PATTERN` of registries that may be asked, such as \"*.example.com\"; can be repeated (default: all)", EnvVars: []string{"PROXYD_REGISTRY"}},
		&cli.StringFlag{Name: "log-level", Usage: "debug, info, warn or error", EnvVars: []string{"PROXYD_LOG_LEVEL"}},
		&cli.StringFlag{Name: "log-format", Usage: "text or json", EnvVars: []string{"PROXYD_LOG_FORMAT"}},
	}
}

// configFrom puts file, environment and flags together.
func configFrom(c *cli.Context) (*Config, error) {
	cfg := Default()
	if name := c.String("config"); name != "" {
		if err := cfg.load(name); err != nil {
			return nil, err
		}
	}
	for name, to := range map[string]*string{
		"listen": &cfg.Listen, "data-dir": &cfg.DataDir, "db": &cfg.DB,
		"log-level": &cfg.Log.Level, "log-format": &cfg.Log.Format,
	} {
		if c.IsSet(name) {
			*to = c.String(name)
		}
	}
	if c.IsSet("plain-http-registry") {
		cfg.Registries.PlainHTTP = c.StringSlice("plain-http-registry")
	}
	if c.IsSet("registry") {
		cfg.Registries.Allowed = c.StringSlice("registry")
	}
	return cfg, cfg.Validate()
}

func newLogger(cfg *Config, w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Log.Level)) // validated
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
