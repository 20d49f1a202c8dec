package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/platforms"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/internal/blob/fsblob"
	"github.com/starlight-delta/starlight/proxyd/internal/index"
	"github.com/starlight-delta/starlight/proxyd/internal/ingest"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta/sqlstore"
	"github.com/starlight-delta/starlight/proxyd/internal/patches"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/internal/retention"
	"github.com/starlight-delta/starlight/proxyd/internal/server"
	"github.com/starlight-delta/starlight/proxyd/internal/ticket"
)

// serve puts the parts together and serves until ctx ends and the requests
// under way are answered, or the drain time is over.
func serve(ctx context.Context, cfg *Config, log *slog.Logger) (err error) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(cfg.Limits.MemoryBytes)
	}
	tlsConfig, err := cfg.TLS.config()
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	tokens, err := readTokens("auth", cfg.Auth.TokenFile)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	hookTokens, err := readTokens("hooks", cfg.Hooks.TokenFile)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	dsn, err := cfg.dsn()
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	store, err := sqlstore.Open(ctx, dsn)
	if err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	defer closing(&err, store.Close)
	blobs, err := fsblob.New(cfg.DataDir)
	if err != nil {
		return err
	}
	if err := blobs.DeleteBelow(server.StaleFrames); err != nil {
		return err
	}
	tickets, err := cfg.tickets()
	if err != nil {
		return err
	}
	metrics := server.NewMetrics()
	metrics.Build(version, commit)
	client := registry.New(registry.Config{
		PlainHTTP: cfg.Registries.PlainHTTP,
		Allowed:   cfg.Registries.Allowed,
		UserAgent: "starlight-proxyd/" + version,
		Documents: store,
		CacheTTL:  cacheTTL(cfg),
		Observe:   metrics.Transport,
	})
	ingester := ingest.New(ingest.Config{ //nolint:contextcheck // an ingest outlives the request that began it; Close ends it
		Source: metrics.Source(client), Meta: store, Blobs: blobs, Parallel: cfg.Limits.IngestParallel,
	})
	defer closing(&err, ingester.Close)
	ahead := patches.New(patches.Config{ //nolint:contextcheck // it works for requests to come; Close ends it
		Meta: store, TOCs: ingester, Blobs: blobs, Log: log, Metrics: metrics.Registerer(),
		Bytes: cfg.Patches.CacheBytes, Parallel: cfg.Patches.Parallel, Memory: cfg.Patches.MemoryBytes,
	})
	defer closing(&err, ahead.Close)
	keeper := retention.New(retention.Config{
		Meta: store, Blobs: blobs, Bytes: cfg.Storage.Bytes, KeepFor: time.Duration(cfg.Storage.KeepFor),
		Lock: ingest.LockName, OfImage: server.FramesKey, Log: log, Metrics: metrics.Registerer(),
	})
	handler := server.New(server.Config{ //nolint:contextcheck // what it does beside requests, Close ends
		Registry: client, Ingester: ingester, Meta: store, Blobs: blobs, Patches: ahead, Retention: keeper, Metrics: metrics, Log: log,
		Version: version, Registries: cfg.Registries.withPort(), Tokens: tokens, Tickets: tickets, Fresh: cfg.Precompress, ClientCert: cfg.TLS.ClientCAFile != "", Limits: cfg.Limits.server(),
	})
	defer closing(&err, handler.Close)
	indexer, err := newIndexer(ctx, cfg, client, handler, store, ahead, log)
	if err != nil {
		return err
	}
	defer closing(&err, indexer.Close)
	if len(hookTokens) > 0 {
		handler.Hooks(indexer.Hooks(hookTokens))
	}
	defer closing(&err, keep(ctx, keeper, handler))
	listener, err := listen(ctx, cfg.Listen)
	if err != nil {
		return err
	}
	log.Info("listening", "address", listener.Addr().String(), "tls", tlsConfig != nil, "version", version)
	return serveHTTP(ctx, listener, tlsConfig, handler, time.Duration(cfg.Drain), log)
}

// keep runs the keeper until the function that it returns is called.
func keep(ctx context.Context, k *retention.Keeper, s *server.Server) (stop func() error) {
	ctx = context.WithoutCancel(ctx) // also while requests are drained
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.Run(running, func(g retention.Gone) { s.Forget(g.Layers, g.Manifests) })
	}()
	return func() error {
		cancel()
		<-done
		return k.Close(ctx)
	}
}

// newIndexer starts what indexes images that nobody has pulled yet.
func newIndexer(ctx context.Context, cfg *Config, client *registry.Client, preparer index.Preparer, store meta.Store, ahead *patches.Cache, log *slog.Logger) (*index.Indexer, error) {
	wanted, err := cfg.Index.platforms()
	if err != nil {
		return nil, err
	}
	c := index.Config{
		Registry: client, Preparer: preparer, Tags: store, Log: log,
		Platforms: wanted, Interval: time.Duration(cfg.Index.Interval),
	}
	c.Moved = func(ctx context.Context, m index.Move) {
		for _, p := range wanted {
			img, err := client.Known(ctx, m.Repo+"@"+m.To.String(), p)
			if err == nil {
				err = ahead.Seen(ctx, m.Repo, m.Tag, platforms.Format(p), img.Manifest.Digest)
			}
			if err != nil && !errors.Is(err, meta.ErrNotFound) {
				log.WarnContext(ctx, "no patches are made ahead", "repo", m.Repo, "tag", m.Tag, "error", err)
			}
		}
	}
	if cfg.Index.AuthFile != "" {
		c.Credentials = index.FromFile(cfg.Index.AuthFile)
	}
	for _, r := range cfg.Index.Repositories {
		c.Poll = append(c.Poll, index.Repository{Name: r.Name, Tags: r.Tags})
	}
	return index.New(ctx, c), nil
}

// unsent is how many bytes of a stream may wait in its socket beyond what the
// congestion window lets out. What becomes urgent comes after them; and what the
// kernel holds cannot be left out any more.
const unsent = 128 << 10

// listen makes a listener whose connections are tuned.
func listen(ctx context.Context, address string) (net.Listener, error) {
	c := net.ListenConfig{Control: tune}
	// Connections of a listener for MPTCP, which is Go's default, inherit less.
	c.SetMultipathTCP(false)
	return c.Listen(ctx, "tcp", address)
}

// tune sets options of a listener that its connections inherit (tcp(7)).
func tune(_, _ string, c syscall.RawConn) error {
	var optErr error
	err := c.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
		// BBR keeps the queues on the way short, through which urgent objects
		// have to go, and does not take each lost packet for congestion. Kernels
		// without it go on with what they have.
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr")
	})
	return errors.Join(err, optErr)
}

// serveHTTP serves until ctx ends, then drains.
func serveHTTP(ctx context.Context, l net.Listener, tlsConfig *tls.Config, h http.Handler, drain time.Duration, log *slog.Logger) error {
	srv := &http.Server{
		Handler:     h,
		TLSConfig:   tlsConfig,
		ConnContext: server.WithConn,
		// A worker keeps one connection warm between pulls.
		IdleTimeout:       10 * time.Minute,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
		Protocols:         new(http.Protocols),
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	// One connection per request under way: on a lossy link, streams that share
	// a connection wait for each other's lost packets.
	srv.Protocols.SetHTTP1(true)
	done := make(chan error, 1)
	go func() {
		if tlsConfig != nil {
			done <- srv.ServeTLS(l, "", "")
		} else {
			done <- srv.Serve(l)
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	log.Info("draining", "timeout", drain)
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err := srv.Shutdown(limit)
	if errors.Is(err, context.DeadlineExceeded) {
		log.Warn("requests are cut off")
		err = srv.Close()
	}
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

func closing(err *error, closeIt func() error) {
	if e := closeIt(); e != nil {
		*err = errors.Join(*err, e)
	}
}

// cacheTTL translates "0s", which is "not at all" to an operator.
func cacheTTL(cfg *Config) time.Duration {
	if cfg.Registries.CacheTTL == 0 {
		return -1
	}
	return time.Duration(cfg.Registries.CacheTTL)
}

// dsn names the database.
func (c *Config) dsn() (string, error) {
	switch {
	case c.DB != "":
		return c.DB, nil
	case c.DBFile != "":
		b, err := os.ReadFile(c.DBFile)
		if err != nil {
			return "", fmt.Errorf("db_file: %w", err)
		}
		url := strings.TrimSpace(string(b))
		if !isPostgres(url) {
			return "", errors.New("db_file: its content does not begin with postgres://")
		}
		return url, nil
	default:
		return filepath.Join(c.DataDir, "proxyd.db"), nil
	}
}

// tickets returns nil if there are to be none.
func (c *Config) tickets() (*ticket.Issuer, error) {
	if c.Auth.TicketTTL == 0 {
		return nil, nil
	}
	file := c.Auth.TicketKeyFile
	if file == "" {
		file = filepath.Join(c.DataDir, "ticket.key")
	}
	return ticket.New(file, time.Duration(c.Auth.TicketTTL))
}

// config reads certificates; nil means plain HTTP.
func (t TLS) config() (*tls.Config, error) {
	if t.CertFile == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if t.ClientCAFile != "" {
		pem, err := os.ReadFile(t.ClientCAFile)
		if err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls: %s holds no certificate", t.ClientCAFile)
		}
		// Probes have no certificate; the server demands one of workers.
		c.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return c, nil
}

// readTokens reads the token file of a section.
func readTokens(section, name string) ([]string, error) {
	if name == "" {
		return nil, nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", section, err)
	}
	tokens := strings.Fields(string(b))
	if len(tokens) == 0 {
		return nil, fmt.Errorf("%s: %s holds no token", section, name)
	}
	return tokens, nil
}
