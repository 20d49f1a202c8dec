package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"

	"github.com/starlight-delta/starlight/proxyd/internal/server"
)

// Config is the configuration file.
type Config struct {
	// Listen is the address to listen on.
	Listen string `toml:"listen"`
	// DataDir holds blobs, and the database if that is SQLite.
	DataDir string `toml:"data_dir"`
	// DB is the URL of a Postgres database; empty means SQLite in DataDir.
	DB string `toml:"db"`
	// DBFile names a file with the URL, to keep its password out of DB.
	DBFile string `toml:"db_file"`
	// Precompress makes images smaller for fresh pulls, in the background, with the zstd
	// program where there is one. It takes
	// about as much space in DataDir as the images compressed.
	Precompress bool `toml:"precompress"`
	// Drain is how long requests may go on after SIGTERM.
	Drain Duration `toml:"drain"`

	Registries Registries `toml:"registries"`
	TLS        TLS        `toml:"tls"`
	Auth       Auth       `toml:"auth"`
	Hooks      Hooks      `toml:"hooks"`
	Index      Index      `toml:"index"`
	Limits     Limits     `toml:"limits"`
	Storage    Storage    `toml:"storage"`
	Patches    Patches    `toml:"patches"`
	Log        Log        `toml:"log"`
}

// Registries says which registries proxyd talks to, and how.
type Registries struct {
	// Allowed are patterns of the registries that may be asked; none means all.
	Allowed []string `toml:"allowed"`
	// PlainHTTP are those that speak HTTP without TLS.
	PlainHTTP []string `toml:"plain_http"`
	// CacheTTL is how long an answer of a registry is believed for the same
	// reference and credentials.
	CacheTTL Duration `toml:"cache_ttl"`
}

// withPort lists the registries that are named with a port and are no pattern.
func (r Registries) withPort() []string {
	var out []string
	for _, host := range slices.Concat(r.Allowed, r.PlainHTTP) {
		if strings.Contains(host, ":") && !strings.Contains(host, "*") && !slices.Contains(out, host) {
			out = append(out, host)
		}
	}
	return out
}

// TLS makes proxyd speak HTTPS.
type TLS struct {
	CertFile string `toml:"cert_file"`
	KeyFile  string `toml:"key_file"`
	// ClientCAFile holds the authorities whose client certificates workers must show.
	ClientCAFile string `toml:"client_ca_file"`
}

// Auth says what workers must show besides.
type Auth struct {
	// TokenFile holds bearer tokens, one per line.
	TokenFile string `toml:"token_file"`
	// TicketTTL is how long a worker that was given an image may get the rest of it
	// without credentials, as after a restart. "0s": never.
	TicketTTL Duration `toml:"ticket_ttl"`
	// TicketKeyFile holds the key of these tickets, 32 random bytes. Replicas need the
	// same one. Default: ticket.key in DataDir, made if it is not there.
	TicketKeyFile string `toml:"ticket_key_file"`
}

// Hooks are what registries call when something was pushed.
type Hooks struct {
	// TokenFile holds bearer tokens, one per line, of which a caller must show one.
	// Without it there are no hooks.
	TokenFile string `toml:"token_file"`
}

// Index says what is indexed before anybody pulls it.
type Index struct {
	// Platforms that are indexed.
	Platforms []string `toml:"platforms"`
	// AuthFile holds credentials of registries, as docker login writes them. They
	// are used for indexing only.
	AuthFile string `toml:"auth_file"`
	// Repositories are looked at every Interval.
	Repositories []Repository `toml:"repositories"`
	Interval     Duration     `toml:"interval"`
}

// Repository is one to look at.
type Repository struct {
	// Name is host/repo.
	Name string `toml:"name"`
	// Tags are patterns, as of path.Match; none means all.
	Tags []string `toml:"tags"`
}

// Limits are those of package server, and of ingest.
type Limits struct {
	Requests   int      `toml:"requests"`
	Bundles    int      `toml:"bundles"`
	Waiting    int      `toml:"ingest_waiting"`
	IngestWait Duration `toml:"ingest_wait"`
	// IngestParallel is how many layers are ingested at a time.
	IngestParallel int      `toml:"ingest_parallel"`
	Stall          Duration `toml:"stall"`
	Body           Duration `toml:"body"`
	Plan           Duration `toml:"plan"`
	CacheBytes     int64    `toml:"cache_bytes"`
	// MemoryBytes is the soft limit of the garbage collector: streams make much
	// short-lived garbage, which would else double the memory. The environment
	// variable GOMEMLIMIT takes precedence.
	MemoryBytes int64 `toml:"memory_bytes"`
}

// Storage bounds what layers take in DataDir. What was of no use for longest goes first;
// it is ingested again when somebody asks for it.
type Storage struct {
	// Bytes is how much is kept of layers, and of what Precompress makes of them; 0:
	// everything.
	Bytes int64 `toml:"bytes"`
	// KeepFor is how long a layer is kept after the last request about it, however
	// much there is.
	KeepFor Duration `toml:"keep_for"`
}

// Patches says what is spent on patches that are made ahead of need.
type Patches struct {
	// CacheBytes is how much of them is kept in DataDir; 0: none are made.
	CacheBytes int64 `toml:"cache_bytes"`
	// Parallel is how many are made at a time, each with MemoryBytes.
	Parallel    int   `toml:"parallel"`
	MemoryBytes int64 `toml:"memory_bytes"`
}

// minKeepFor is longer than it takes until the use of a layer is in the database.
const minKeepFor = 5 * time.Minute

// Log says what is logged, and how.
type Log struct {
	Level  string `toml:"level"`
	Format string `toml:"format"`
}

// Duration is written as "5s".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default returns the configuration without a file.
func Default() *Config {
	l := server.DefaultLimits()
	return &Config{
		Listen:      ":8090",
		Precompress: true,
		Drain:       Duration(30 * time.Second),
		Registries:  Registries{CacheTTL: Duration(5 * time.Second)},
		Index:       Index{Platforms: []string{"linux/amd64"}, Interval: Duration(5 * time.Minute)},
		Auth:        Auth{TicketTTL: Duration(24 * time.Hour)},
		Limits: Limits{
			Requests: l.Requests, Bundles: l.Bundles, Waiting: l.Waiting,
			IngestWait: Duration(l.IngestWait), IngestParallel: 4,
			Stall: Duration(l.Stall), Body: Duration(l.Body), Plan: Duration(l.Plan), CacheBytes: l.CacheBytes,
			MemoryBytes: 256 << 20,
		},
		Storage: Storage{KeepFor: Duration(time.Hour)},
		Patches: Patches{CacheBytes: 4 << 30, Parallel: 1, MemoryBytes: 48 << 20},
		Log:     Log{Level: "info", Format: "text"},
	}
}

// load reads a file over c. A key that does not exist is an error: it is a typo
// that would silently leave a limit or a lock out.
func (c *Config) load(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	dec := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			return fmt.Errorf("%s: unknown key:\n%s", name, strict.String())
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Validate checks what an operator may have got wrong.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		bad("listen: %w", err)
	}
	if c.DataDir == "" {
		bad("data_dir (--data-dir) is needed")
	}
	if c.DB != "" && c.DBFile != "" {
		bad("db and db_file exclude each other")
	}
	if c.DB != "" && !isPostgres(c.DB) {
		bad("db: the URL does not begin with postgres://")
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		bad("tls: cert_file and key_file go together")
	}
	if c.TLS.ClientCAFile != "" && c.TLS.CertFile == "" {
		bad("tls: client_ca_file needs cert_file and key_file")
	}
	for _, h := range slices.Concat(c.Registries.Allowed, c.Registries.PlainHTTP) {
		if h == "" || strings.Contains(h, "/") {
			bad("registries: %q is not host[:port]", h)
		}
	}
	if _, err := c.Index.platforms(); err != nil {
		bad("index: %w", err)
	}
	if c.Index.Interval < Duration(time.Second) {
		bad("index: interval must be at least 1s")
	}
	for _, r := range c.Index.Repositories {
		if host, repo, ok := strings.Cut(r.Name, "/"); !ok || host == "" || repo == "" {
			bad("index: repository %q is not host/name", r.Name)
		}
		for _, t := range r.Tags {
			if _, err := path.Match(t, ""); err != nil {
				bad("index: tags: %q: %w", t, err)
			}
		}
	}
	l := c.Limits
	for name, v := range map[string]int64{
		"requests": int64(l.Requests), "bundles": int64(l.Bundles), "ingest_waiting": int64(l.Waiting),
		"ingest_wait": int64(l.IngestWait), "ingest_parallel": int64(l.IngestParallel), "stall": int64(l.Stall),
		"body": int64(l.Body), "plan": int64(l.Plan), "cache_bytes": l.CacheBytes,
		"memory_bytes": l.MemoryBytes,
	} {
		if v <= 0 {
			bad("limits: %s must be positive", name)
		}
	}
	if c.Patches.CacheBytes < 0 || c.Patches.Parallel <= 0 || c.Patches.MemoryBytes <= 0 {
		bad("patches: parallel and memory_bytes must be positive, cache_bytes not negative")
	}
	if c.Storage.Bytes < 0 || c.Storage.KeepFor < Duration(minKeepFor) {
		bad("storage: bytes must not be negative, keep_for at least %v", minKeepFor)
	}
	if c.Drain < 0 || c.Registries.CacheTTL < 0 || c.Auth.TicketTTL < 0 {
		bad("drain, cache_ttl and ticket_ttl must not be negative")
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		bad("log: level %q", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		bad("log: format %q is neither text nor json", c.Log.Format)
	}
	return errors.Join(errs...)
}

func (x Index) platforms() ([]ocispec.Platform, error) {
	if len(x.Platforms) == 0 {
		return nil, errors.New("platforms must not be empty")
	}
	return platforms.ParseAll(x.Platforms)
}

func isPostgres(url string) bool {
	return strings.HasPrefix(url, "postgres://") || strings.HasPrefix(url, "postgresql://")
}

// server returns the limits of package server.
func (l Limits) server() server.Limits {
	return server.Limits{
		Requests: l.Requests, Bundles: l.Bundles, Waiting: l.Waiting, IngestWait: time.Duration(l.IngestWait),
		Stall: time.Duration(l.Stall), Body: time.Duration(l.Body), Plan: time.Duration(l.Plan), CacheBytes: l.CacheBytes,
	}
}
