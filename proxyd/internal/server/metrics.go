package server

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/starlight-delta/starlight/proxyd/internal/ingest"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Metrics of proxyd. No label takes a value that a client chooses.
type Metrics struct {
	registry *prometheus.Registry

	requests       *prometheus.CounterVec
	duration       *prometheus.HistogramVec
	first          *prometheus.HistogramVec
	bundleBytes    prometheus.Counter
	bundleObjects  prometheus.Counter
	plan           prometheus.Histogram
	streams        prometheus.Gauge
	waiting        prometheus.Gauge
	traces         prometheus.Counter
	ingestBytes    prometheus.Counter
	ingestDuration prometheus.Histogram
	upstream       *prometheus.CounterVec
}

// NewMetrics returns the metrics in a registry of their own.
func NewMetrics() *Metrics {
	long := []float64{.005, .01, .03, .1, .3, 1, 3, 10, 30, 100, 300, 1000}
	short := []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10, 30}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "proxyd_requests_total", Help: "Requests of workers by route and by the code they ended with.",
		}, []string{"route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "proxyd_request_duration_seconds", Help: "Time until the last byte was sent.", Buckets: long,
		}, []string{"route"}),
		first: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "proxyd_first_byte_seconds", Help: "Time until the first byte was sent.", Buckets: short,
		}, []string{"route"}),
		bundleBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "proxyd_bundle_bytes_total", Help: "Bytes of bundles sent.",
		}),
		bundleObjects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "proxyd_bundle_objects_total", Help: "Objects sent in bundles.",
		}),
		plan: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "proxyd_plan_duration_seconds", Help: "Time to load inventories and to plan a bundle.", Buckets: short,
		}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "proxyd_streams_active", Help: "Bundles under way.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "proxyd_ingest_waiting", Help: "Requests that wait for an ingest.",
		}),
		traces: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "proxyd_traces_total", Help: "Traces of starting containers that workers reported.",
		}),
		ingestBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "proxyd_ingest_bytes_total", Help: "Bytes of layers read from registries for ingest.",
		}),
		ingestDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "proxyd_ingest_duration_seconds", Help: "Time to ingest one layer.", Buckets: long,
		}),
		upstream: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "proxyd_upstream_requests_total", Help: "Requests to registries by method and status, \"error\" without one.",
		}, []string{"method", "code"}),
	}
	m.registry.MustRegister(m.requests, m.duration, m.first, m.bundleBytes, m.bundleObjects, m.plan, m.streams, m.waiting, m.traces,
		m.ingestBytes, m.ingestDuration, m.upstream,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Build publishes version and commit of the binary.
func (m *Metrics) Build(version, commit string) {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "proxyd_build_info", Help: "Always 1; the labels tell the version.",
		ConstLabels: prometheus.Labels{"version": version, "commit": commit},
	})
	g.Set(1)
	m.registry.MustRegister(g)
}

// Registerer takes the metrics of other parts.
func (m *Metrics) Registerer() prometheus.Registerer { return m.registry }

func (m *Metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

func (m *Metrics) request(route, code string, took, first time.Duration) {
	m.requests.WithLabelValues(route, code).Inc()
	m.duration.WithLabelValues(route).Observe(took.Seconds())
	if first > 0 {
		m.first.WithLabelValues(route).Observe(first.Seconds())
	}
}

// Transport counts the requests that go through next.
func (m *Metrics) Transport(next http.RoundTripper) http.RoundTripper {
	return transport{next: next, m: m}
}

type transport struct {
	next http.RoundTripper
	m    *Metrics
}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	code := "error"
	if err == nil {
		code = strconv.Itoa(resp.StatusCode)
	}
	t.m.upstream.WithLabelValues(r.Method, code).Inc()
	return resp, err
}

// Source counts the layers that are read from next.
func (m *Metrics) Source(next ingest.Source) ingest.Source { return source{Source: next, m: m} }

type source struct {
	ingest.Source
	m *Metrics
}

// Blob implements ingest.Source.
func (s source) Blob(ctx context.Context, ref string, desc ocispec.Descriptor, creds *wire.Credentials) (io.ReadCloser, error) {
	rc, err := s.Source.Blob(ctx, ref, desc, creds)
	if err != nil {
		return nil, err
	}
	return &countedBlob{ReadCloser: rc, m: s.m, began: time.Now()}, nil
}

type countedBlob struct {
	io.ReadCloser
	m     *Metrics
	began time.Time
}

// Read implements io.Reader.
func (b *countedBlob) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.m.ingestBytes.Add(float64(n))
	return n, err
}

// Close implements io.Closer.
func (b *countedBlob) Close() error {
	b.m.ingestDuration.Observe(time.Since(b.began).Seconds())
	return b.ReadCloser.Close()
}
