package plugin

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"time"

	"github.com/starlight-delta/starlight/plugins/internal/delta"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
)

// Config is the section [plugins.'io.containerd.starlight.v1.engine'].
type Config struct {
	// Proxies in the order in which they are asked: the first whose registries
	// match the host of an image serves it. Without any, images are pulled as
	// by stock containerd.
	Proxies []Proxy `toml:"proxies,omitempty"`

	// DefaultSnapshotter makes starlight the snapshotter of clients that name
	// none: transfers without one, and namespaces without a default of their own.
	DefaultSnapshotter bool `toml:"default_snapshotter"`

	// RootPath holds objects, trees and snapshots. Empty: the directory of the
	// snapshotter below containerd's root.
	RootPath string `toml:"root_path"`

	// ReadTimeout is how long a read of a file that has not arrived waits before
	// it fails with EIO. "0s" waits for ever.
	ReadTimeout string `toml:"read_timeout"`

	// HeaderTimeout is how long a proxy may give no sign of life before the
	// metadata of an image is there; the image is pulled from the registry then.
	HeaderTimeout string `toml:"header_timeout"`

	// StreamTimeout is how long a proxy may send nothing of the contents that it
	// owes before they are asked for again.
	StreamTimeout string `toml:"stream_timeout"`

	// ReportTraces sends to the proxies what containers waited for while they
	// started, and what "ctr-starlight optimizer" recorded.
	ReportTraces bool `toml:"report_traces"`

	// RequireTOCDigests makes deltas of those images only whose manifest names the
	// table of contents of each layer, as "ctr-starlight convert" writes it.
	RequireTOCDigests bool `toml:"require_toc_digests"`
}

// Proxy is one proxyd.
type Proxy struct {
	// Address is its URL.
	Address string `toml:"address"`
	// Registries are patterns, as of path.Match, of the hosts of image
	// references. Empty: all.
	Registries []string `toml:"registries"`
	// CA is a file of the authorities that the certificate of the proxy must come
	// from. Empty: those of the system.
	CA string `toml:"ca"`
	// Cert and Key are files of the client certificate that the node shows. Without
	// Key, the key is in the file of Cert.
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
	// TokenFile holds the bearer token that the node shows.
	TokenFile string `toml:"token_file"`
}

// Default is the configuration without a section.
func Default() *Config {
	return &Config{
		ReadTimeout:   "2m",
		HeaderTimeout: "15s",
		StreamTimeout: "15s",
	}
}

// Validate checks what an operator may have got wrong.
func (c *Config) Validate() error {
	_, err := c.engine("/")
	return err
}

// engine translates the section for the engine.
func (c *Config) engine(root string) (engine.Config, error) {
	out := engine.Config{Root: root, ReportTraces: c.ReportTraces, RequireTOCDigests: c.RequireTOCDigests}
	var errs []error
	if c.RootPath != "" {
		if !filepath.IsAbs(c.RootPath) {
			errs = append(errs, fmt.Errorf("root_path %q is not absolute", c.RootPath))
		}
		out.Root = c.RootPath
	}
	for _, d := range []struct {
		key, value string
		to         *time.Duration
	}{
		{"read_timeout", c.ReadTimeout, &out.ReadTimeout},
		{"header_timeout", c.HeaderTimeout, &out.HeaderTimeout},
		{"stream_timeout", c.StreamTimeout, &out.StreamTimeout},
	} {
		v, err := time.ParseDuration(d.value)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", d.key, err))
		} else if v < 0 {
			errs = append(errs, fmt.Errorf("%s %q is negative", d.key, d.value))
		}
		*d.to = v
	}
	for i, p := range c.Proxies {
		px, err := p.Engine()
		if err != nil {
			errs = append(errs, fmt.Errorf("proxies[%d]: %w", i, err))
		}
		out.Proxies = append(out.Proxies, px)
	}
	return out, errors.Join(errs...)
}

// Engine checks the proxy and translates it for the engine.
func (p *Proxy) Engine() (engine.Proxy, error) {
	registries := p.Registries
	if len(registries) == 0 {
		registries = []string{"*"}
	}
	return engine.Proxy{
		Address: p.Address, Registries: registries,
		Files: delta.Files{CA: p.CA, Cert: p.Cert, Key: p.Key, Token: p.TokenFile},
	}, p.validate()
}

func (p *Proxy) validate() error {
	u, err := url.Parse(p.Address)
	if err != nil {
		return fmt.Errorf("address: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("address %q is not http://host or https://host", p.Address)
	}
	if u.User != nil {
		return errors.New("address carries credentials")
	}
	for _, f := range []struct{ key, name string }{{"ca", p.CA}, {"cert", p.Cert}, {"key", p.Key}, {"token_file", p.TokenFile}} {
		switch {
		case f.name == "":
		case !filepath.IsAbs(f.name):
			return fmt.Errorf("%s %q is not absolute", f.key, f.name)
		case u.Scheme == "http" && f.key != "token_file":
			return fmt.Errorf("%s needs an https address", f.key)
		}
	}
	if p.Key != "" && p.Cert == "" {
		return errors.New("key without cert")
	}
	for _, r := range p.Registries {
		if _, err := path.Match(r, ""); err != nil {
			return fmt.Errorf("registries: %q: %w", r, err)
		}
	}
	return nil
}

// cleartext lists the proxies that credentials of registries, and tokens, reach
// unencrypted.
func (c *Config) cleartext() []string {
	var out []string
	for _, p := range c.Proxies {
		if u, err := url.Parse(p.Address); err == nil && u.Scheme == "http" && !loopback(u.Hostname()) {
			out = append(out, p.Address)
		}
	}
	return out
}
