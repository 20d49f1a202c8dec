package plugin

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/starlight-delta/starlight/plugins/internal/delta"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
)

func TestConfigTOML(t *testing.T) {
	c := Default()
	err := toml.Unmarshal([]byte(`
default_snapshotter = true
read_timeout = "30s"
require_toc_digests = true
[[proxies]]
  address = "http://10.77.0.1:8090"
  registries = ["*.example.com", "docker.io"]
[[proxies]]
  address = "https://proxy.example.com/starlight"
  ca = "/etc/starlight/ca.pem"
  cert = "/etc/starlight/node.pem"
  key = "/etc/starlight/node.key"
  token_file = "/run/secrets/token"
`), c)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.engine("/r")
	if err != nil {
		t.Fatal(err)
	}
	want := engine.Config{
		Root: "/r",
		Proxies: []engine.Proxy{
			{Address: "http://10.77.0.1:8090", Registries: []string{"*.example.com", "docker.io"}},
			{
				Address: "https://proxy.example.com/starlight", Registries: []string{"*"},
				Files: delta.Files{
					CA: "/etc/starlight/ca.pem", Cert: "/etc/starlight/node.pem", Key: "/etc/starlight/node.key", Token: "/run/secrets/token",
				},
			},
		},
		ReadTimeout:   30 * time.Second,
		HeaderTimeout: 15 * time.Second,
		StreamTimeout: 15 * time.Second,

		RequireTOCDigests: true,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"http://10.77.0.1:8090"}, c.cleartext()); d != "" {
		t.Error(d)
	}
}

func TestConfigValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"default":       {func(*Config) {}, ""},
		"relative root": {func(c *Config) { c.RootPath = "x" }, "root_path"},
		"no duration":   {func(c *Config) { c.ReadTimeout = "5" }, "read_timeout"},
		"negative":      {func(c *Config) { c.HeaderTimeout = "-5s" }, "header_timeout"},
		"no scheme":     {func(c *Config) { c.Proxies = []Proxy{{Address: "10.0.0.1:8090"}} }, "proxies[0]"},
		"no host":       {func(c *Config) { c.Proxies = []Proxy{{Address: "http:///x"}} }, "proxies[0]"},
		"password":      {func(c *Config) { c.Proxies = []Proxy{{Address: "http://a:b@h"}} }, "credentials"},
		"relative file": {func(c *Config) { c.Proxies = []Proxy{{Address: "https://h", TokenFile: "token"}} }, "token_file"},
		"ca of http":    {func(c *Config) { c.Proxies = []Proxy{{Address: "http://h", CA: "/ca"}} }, "https"},
		"lonely key":    {func(c *Config) { c.Proxies = []Proxy{{Address: "https://h", Key: "/key"}} }, "without cert"},
		"pattern":       {func(c *Config) { c.Proxies = []Proxy{{Address: "http://h", Registries: []string{"["}}} }, "registries"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Default()
			tc.change(c)
			err := c.Validate()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestSiblingRoot(t *testing.T) {
	got := siblingRoot("/var/lib/containerd/io.containerd.starlight.v1.engine")
	if want := "/var/lib/containerd/io.containerd.snapshotter.v1.starlight"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
