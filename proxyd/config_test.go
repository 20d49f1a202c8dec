package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

func TestConfigRefusesMistakes(t *testing.T) {
	tests := map[string]string{
		"unknown key":        "listne = \"x:1\"",
		"unknown nested key": "[limits]\nbundels = 1",
		"no TOML":            "[",
		"listen":             "listen = \"nowhere\"",
		"limit":              "[limits]\nbundles = 0",
		"duration":           "[limits]\nstall = \"soon\"",
		"database":           "db = \"mysql://x\"",
		"two databases":      "db = \"postgres://x\"\ndb_file = \"y\"",
		"key without cert":   "[tls]\nkey_file = \"k\"",
		"CA without cert":    "[tls]\nclient_ca_file = \"k\"",
		"registry":           "[registries]\nallowed = [\"https://x\"]",
		"level":              "[log]\nlevel = \"loud\"",
		"format":             "[log]\nformat = \"xml\"",
		"missing token file": "[auth]\ntoken_file = \"/nonexistent\"",
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "c.toml")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var out, errOut bytes.Buffer
			code := run(t.Context(), []string{"proxyd", "serve", "--config", file, "--data-dir", t.TempDir()}, &out, &errOut)
			if code != exitUsage || errOut.Len() == 0 {
				t.Errorf("got exit code %d, %q; want %d and why", code, errOut.String(), exitUsage)
			}
		})
	}
}

// TestConfigPrecedence: flags before environment before file before default.
func TestConfigPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	text := "listen = \"file:1\"\ndata_dir = \"file\"\n[limits]\nstall = \"7s\"\n[log]\nlevel = \"warn\"\n[registries]\nplain_http = [\"f\"]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PROXYD_LISTEN", "env:1")
	t.Setenv("PROXYD_DATA_DIR", "env")
	var got *Config
	app := &cli.App{Flags: serveFlags(), Action: func(c *cli.Context) (err error) {
		got, err = configFrom(c)
		return err
	}}
	if err := app.Run([]string{"x", "--config", file, "--listen", "flag:1", "--plain-http-registry", "a:1", "--plain-http-registry", "b"}); err != nil {
		t.Fatal(err)
	}
	if got.Listen != "flag:1" || got.DataDir != "env" || got.Log.Level != "warn" || got.Log.Format != "text" ||
		time.Duration(got.Limits.Stall) != 7*time.Second || !slices.Equal(got.Registries.PlainHTTP, []string{"a:1", "b"}) {
		t.Errorf("got %+v", got)
	}
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		out  string
	}{
		{[]string{"version"}, 0, version + " " + commit},
		{[]string{"serve", "--no-such-flag"}, exitUsage, ""},
		{[]string{"serve"}, exitUsage, ""}, // no data directory
		{[]string{"serve", "argument"}, exitUsage, ""},
		{[]string{"sevre"}, exitUsage, ""},
		{[]string{"serve", "--data-dir", "/proc/none"}, exitFailure, ""},
	} {
		var out, errOut bytes.Buffer
		if code := run(t.Context(), append([]string{"proxyd"}, tt.args...), &out, &errOut); code != tt.code || !strings.Contains(out.String(), tt.out) {
			t.Errorf("%v: got %d, %q, %q; want %d, %q", tt.args, code, out.String(), errOut.String(), tt.code, tt.out)
		}
	}
}
