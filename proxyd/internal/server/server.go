package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/internal/registry"
	"github.com/starlight-delta/starlight/proxyd/internal/strong"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Server answers workers. It is safe for concurrent use.
type Server struct {
	cfg     Config
	tokens  [][sha256.Size]byte
	mux     *http.ServeMux
	library *library
	encoder *delta.Encoder
	fresh   *fresh // nil: nothing is compressed ahead
	streams streams
	joint   joint

	requests, bundles, waiting, reports slots
}

// patchMemory bounds what making patches takes, but for what waits to be sent.
const patchMemory = 96 << 20

// New returns a Server. It must be closed when no request is left.
func New(cfg Config) *Server {
	s := &Server{
		cfg:      cfg,
		mux:      http.NewServeMux(),
		library:  newLibrary(cfg),
		encoder:  delta.NewEncoder(runtime.GOMAXPROCS(0), patchMemory, cfg.Patches),
		requests: make(slots, cfg.Limits.Requests),
		bundles:  make(slots, cfg.Limits.Bundles),
		waiting:  make(slots, cfg.Limits.Waiting),
		reports:  make(slots, maxReports),
	}
	if cfg.Fresh {
		c := strong.New(s.encoder.Turn, cfg.Log)
		s.fresh = newFresh(s.library, c.Compress, c.Parallel())
	}
	for _, t := range cfg.Tokens {
		s.tokens = append(s.tokens, sha256.Sum256([]byte(t)))
	}
	s.mux.Handle("POST "+wire.RouteDelta, s.worker("delta", s.delta))
	s.mux.Handle("POST "+wire.RouteObjects, s.worker("objects", s.objects))
	s.mux.Handle("POST "+wire.RouteBlob, s.worker("blob", s.blob))
	s.mux.Handle("POST "+wire.RoutePlan, s.worker("plan", s.plan))
	s.mux.Handle("POST "+wire.RouteTraces, s.worker("traces", s.traces))
	s.mux.Handle("GET "+wire.RoutePing, s.worker("ping", s.ping))
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok\n") })
	s.mux.HandleFunc("GET /readyz", s.ready)
	s.mux.Handle("GET /metrics", cfg.Metrics.handler())
	return s
}

// Hooks has h serve what is below /hooks/. It must not be called any more when requests
// come.
func (s *Server) Hooks(h http.Handler) { s.mux.Handle("POST /hooks/", h) }

// Prepare ingests an image and keeps it ready to be planned, so that nobody waits for that.
func (s *Server) Prepare(ctx context.Context, img *registry.Image, creds *wire.Credentials) error {
	if err := served(img); err != nil {
		return err
	}
	layers, err := s.cfg.Ingester.Image(ctx, img, creds, nil)
	if err != nil {
		return err
	}
	_, err = s.library.image(ctx, img, layers)
	return err
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mux.ServeHTTP(newResponse(w, s.cfg.Limits.Stall), r)
}

// Forget gives back what is kept of layers that are deleted, and of images with them.
func (s *Server) Forget(layers []meta.LayerUse, manifests []toc.Digest) {
	if s.fresh != nil {
		s.fresh.forget(manifests)
	}
	s.library.forget(layers, manifests)
}

// Close waits for work that outlives requests and gives back what is cached.
func (s *Server) Close() error {
	if s.fresh != nil {
		s.fresh.close()
	}
	return s.library.close()
}

// record is what is told about one request, in the log and in metrics.
type record struct {
	ref      string
	platform string
	digest   toc.Digest // of the manifest
	objects  int
	bytes    int64 // of objects, uncompressed
	plan     time.Duration
	ingested bool
	err      error
}

// handler serves a request of a worker. It begins the response only if it can
// keep to the grammar of the response to the end; an error that it returns is
// told to the worker by the caller if the response has not begun.
type handler func(w *response, r *http.Request, rec *record) error

// worker wraps a handler for workers with everything they have in common.
func (s *Server) worker(route string, h handler) http.Handler {
	return http.HandlerFunc(func(hw http.ResponseWriter, r *http.Request) {
		w, ok := hw.(*response)
		if !ok {
			w = newResponse(hw, s.cfg.Limits.Stall)
		}
		began := time.Now()
		rec := &record{}
		err := s.admit(r)
		if err == nil {
			err = s.limited(w, r, rec, h)
		}
		if err != nil && !w.began() {
			writeError(w, wireError(err))
		} else if err == nil {
			err = rec.err
		}
		s.finish(route, w, r, rec, began, err)
	})
}

func (s *Server) limited(w *response, r *http.Request, rec *record, h handler) error {
	release, ok := s.requests.take()
	if !ok {
		return busy("too many requests")
	}
	defer release()
	return h(w, r, rec)
}

// admit lets only those workers in that this proxyd is meant for.
func (s *Server) admit(r *http.Request) error {
	if s.cfg.ClientCert && (r.TLS == nil || len(r.TLS.VerifiedChains) == 0) {
		return &wire.Error{Code: wire.CodeDenied, Message: "this proxyd wants a client certificate"}
	}
	if len(s.tokens) == 0 {
		return nil
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	sum := sha256.Sum256([]byte(token))
	for i := range s.tokens {
		if subtle.ConstantTimeCompare(s.tokens[i][:], sum[:]) == 1 {
			return nil
		}
	}
	return &wire.Error{Code: wire.CodeDenied, Message: "this proxyd wants a token"}
}

// finish writes the one log line of a request, and its metrics.
func (s *Server) finish(route string, w *response, r *http.Request, rec *record, began time.Time, err error) {
	took := time.Since(began)
	code := "ok"
	if err != nil {
		code = wireError(err).Code
		if r.Context().Err() != nil {
			code = "gone" // the client left; whatever else failed is a consequence
		}
	}
	s.cfg.Metrics.request(route, code, took, w.firstByte(began))
	attrs := []slog.Attr{
		slog.String("route", route), slog.String("code", code), slog.Int("status", w.status),
		slog.String("client", r.RemoteAddr), slog.Int64("sent", w.written), slog.Duration("duration", took),
	}
	if rec.ref != "" {
		attrs = append(attrs, slog.String("ref", loggable(rec.ref)), slog.String("platform", loggable(rec.platform)))
	}
	if !rec.digest.IsZero() {
		attrs = append(attrs, slog.String("digest", rec.digest.String()), slog.Int("objects", rec.objects),
			slog.Int64("bytes", rec.bytes), slog.Duration("plan", rec.plan), slog.Bool("ingested", rec.ingested))
	}
	level := slog.LevelInfo
	switch {
	case code == wire.CodeInternal:
		level = slog.LevelError
	case route == "ping":
		level = slog.LevelDebug
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	s.cfg.Log.LogAttrs(r.Context(), level, "request", attrs...)
}

// loggable keeps what a hostile or careless client put into a reference, such as
// a password before an @, out of the log.
func loggable(s string) string {
	host, _, _ := strings.Cut(s, "/")
	if len(s) > 512 || strings.Contains(s, "://") || strings.Contains(host, "@") {
		return "(malformed)"
	}
	return s
}

// decode reads the request within the limits.
func (s *Server) decode(w *response, r *http.Request, req any) error {
	if err := w.readDeadline(s.cfg.Limits.Body); err != nil {
		return err
	}
	body := http.MaxBytesReader(w, r.Body, wire.MaxRequest+1<<10)
	if err := wire.DecodeRequest(body, r.Header.Get("Content-Encoding"), req); err != nil {
		if errors.Is(err, toc.ErrInvalid) {
			return invalid(err.Error())
		}
		return fmt.Errorf("%w: %w", invalid("the request did not arrive whole"), err)
	}
	// From here on net/http reads to notice that the client left; a deadline
	// would look like that.
	return w.readDeadline(0)
}

func (s *Server) ping(w *response, r *http.Request, _ *record) error {
	fill := 0
	if v := r.URL.Query().Get(wire.FillParam); v != "" {
		var err error
		if fill, err = strconv.Atoi(v); err != nil || fill < 0 || fill > wire.MaxFill {
			return invalid(fmt.Sprintf("%s is not a number of bytes up to %d", wire.FillParam, wire.MaxFill))
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	err := json.NewEncoder(w).Encode(wire.Ping{Version: s.cfg.Version, Protocol: wire.Version, Registries: s.cfg.Registries})
	if err == nil && fill > 0 && remembers(r.Context()) {
		_, err = w.Write(bytes.Repeat([]byte{' '}, fill))
	}
	return err
}

// ready tells whether what proxyd rests on can be reached.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	if err := s.cfg.Meta.Ping(ctx); err != nil {
		s.cfg.Log.WarnContext(ctx, "not ready", "part", "database", "error", err)
		plain(w, http.StatusServiceUnavailable, "database: not reachable\n")
		return
	}
	if err := s.library.reachable(ctx); err != nil {
		s.cfg.Log.WarnContext(ctx, "not ready", "part", "blobs", "error", err)
		plain(w, http.StatusServiceUnavailable, "blob store: not reachable\n")
		return
	}
	plain(w, http.StatusOK, "ok\n")
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	// Nobody is left to tell that the client is gone.
	_, _ = w.Write([]byte(text))
}

// slots bounds how much of one kind of work is done at a time.
type slots chan struct{}

// take returns at once: waiting costs memory, and the worker has a better idea
// of whether to wait or to go elsewhere.
func (s slots) take() (release func(), ok bool) {
	select {
	case s <- struct{}{}:
		return sync.OnceFunc(func() { <-s }), true
	default:
		return nil, false
	}
}
