package engine

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/containerd/v2/pkg/tracing"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/starlight-delta/starlight/plugins/internal/lazyfs"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// origin is where contents came from, as metrics tell it.
type origin string

const (
	fromStream   origin = "stream"    // in the order of the proxy
	fromDemand   origin = "on_demand" // out of turn, because a reader waited
	fromRegistry origin = "registry"  // out of a whole layer
	fromLocal    origin = "local"     // was there before the pull
)

// metrics count since the engine was opened. No label takes a value that an image
// or a client chooses.
type metrics struct {
	objects, objectBytes *prometheus.CounterVec // by origin
	received             *prometheus.CounterVec // by origin
	pulls                *prometheus.CounterVec // by mode
	ready, done          prometheus.Histogram
	resumes              *prometheus.CounterVec // by origin
	invalid              *prometheus.CounterVec // by origin
	blocked              prometheus.Gauge
	waited               prometheus.Histogram
	readErrors           *prometheus.CounterVec // by errno
}

func newMetrics() *metrics {
	counter := func(name, help, label string, values ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "starlight_" + name, Help: help}, []string{label})
		for _, v := range values {
			c.WithLabelValues(v) // there from the start, so that a rate sees the first
		}
		return c
	}
	histogram := func(name, help string, buckets ...float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "starlight_" + name, Help: help, Buckets: buckets})
	}
	stream, demand, registry, local := string(fromStream), string(fromDemand), string(fromRegistry), string(fromLocal)
	return &metrics{
		objects:     counter("objects_total", "Contents of files that pulls needed, by where they came from.", "source", stream, demand, registry, local),
		objectBytes: counter("object_bytes_total", "Bytes of these contents, uncompressed.", "source", stream, demand, registry, local),
		received:    counter("received_bytes_total", "Bytes received on the wire, by what was asked for.", "source", stream, demand, registry),
		pulls:       counter("pulls_total", "Pulls by mode: delta, or plain as stock containerd does.", "mode", ModeDelta, ModePlain),
		ready: histogram("pull_ready_duration_seconds", "Time from the start of a delta pull until containers can start.",
			.01, .03, .1, .2, .3, .5, 1, 2, 3, 5, 10, 30, 100, 300),
		done: histogram("pull_duration_seconds", "Time from the start of a delta pull until all contents are local.",
			.03, .1, .3, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600),
		resumes: counter("resumes_total", "Requests for the rest of an image, after its stream broke off or containerd was started anew.", "source", stream, registry),
		invalid: counter("verification_failures_total", "Contents that were refused because they had not their digest.", "source", stream, demand, registry),
		blocked: prometheus.NewGauge(prometheus.GaugeOpts{Name: "starlight_blocked_reads", Help: "Reads that wait for contents now."}),
		waited: histogram("blocked_read_duration_seconds", "How long reads waited for contents that had not arrived.",
			.001, .003, .01, .03, .1, .2, .3, .5, 1, 3, 10, 30, 120),
		readErrors: counter("read_errors_total", "Reads of contents that failed, by what the reader got.", "errno", "EIO", "ENOENT"),
	}
}

// tally counts an object that has arrived.
func (e *Engine) tally(from origin, o toc.Object) {
	if _, asked := e.asked.LoadAndDelete(o.Digest); asked && from == fromStream {
		from = fromDemand
	}
	e.metrics.contents(from, 1, o.Size)
}

// pulled counts a delta pull whose metadata is there.
func (m *metrics) pulled(ready time.Duration, s *stream) {
	m.pulls.WithLabelValues(ModeDelta).Inc()
	m.ready.Observe(ready.Seconds())
	m.contents(fromLocal, s.localObjects, s.localBytes)
}

// whole tells that all contents of a pull are local: the one line that the log has
// of a delta pull.
func (e *Engine) whole(ctx context.Context, k refKey, r refRecord, img imageRecord) {
	e.metrics.done.Observe(r.Done.Seconds())
	log.G(ctx).WithFields(log.Fields{
		"namespace": k.namespace, "ref": k.ref, "mode": ModeDelta, "proxy": r.Proxy,
		"bytes": r.WireBytes, "total_bytes": img.Bytes, "objects": img.Objects,
		"roundtrips": r.RoundTrips, "ready": r.Ready, "duration": r.Done,
	}).Info("image pulled")
}

// startSpan starts a span of what is done for ref, by a proxy if p is not nil.
func startSpan(ctx context.Context, name, ref string, p *proxy) (context.Context, *tracing.Span) {
	opts := []tracing.SpanOpt{tracing.WithAttribute("image.ref", ref)}
	if p != nil {
		opts = append(opts, tracing.WithAttribute("proxy", p.Address))
	}
	return tracing.StartSpan(ctx, tracing.Name("starlight", name), opts...)
}

// contents counts contents that are local.
func (m *metrics) contents(from origin, objects, bytes int64) {
	m.objects.WithLabelValues(string(from)).Add(float64(objects))
	m.objectBytes.WithLabelValues(string(from)).Add(float64(bytes))
}

// refused counts err if it says that contents were wrong.
func (m *metrics) refused(from origin, err error) {
	if errdefs.IsDataLoss(err) || errors.Is(err, toc.ErrInvalid) {
		m.invalid.WithLabelValues(string(from)).Inc()
	}
}

// read begins to count a blocked read, and returns what ends it.
func (m *metrics) read() func(error) {
	start := time.Now()
	m.blocked.Inc()
	return func(err error) {
		m.blocked.Dec()
		m.waited.Observe(time.Since(start).Seconds())
		switch {
		case err == nil:
		case errdefs.IsNotFound(err):
			m.readErrors.WithLabelValues("ENOENT").Inc()
		case !errdefs.IsCanceled(err): // else nobody waits any more
			m.readErrors.WithLabelValues("EIO").Inc()
		}
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{
		m.objects, m.objectBytes, m.received, m.pulls, m.ready, m.done, m.resumes, m.invalid, m.blocked, m.waited, m.readErrors,
	}
}

// What is looked up when it is asked for.
var (
	descCacheObjects = prometheus.NewDesc("starlight_cache_objects", "Contents in the object store.", nil, nil)
	descCacheBytes   = prometheus.NewDesc("starlight_cache_bytes", "Bytes that the object store takes on the disk.", nil, nil)
	descImages       = prometheus.NewDesc("starlight_images", "Images by state.", []string{"state"}, nil)
	descFuse         = prometheus.NewDesc("starlight_fuse_requests_total", "Requests of the kernel to the lazy file system.", []string{"op"}, nil)
)

// Metrics returns what is to be registered with Prometheus.
func (e *Engine) Metrics() prometheus.Collector { return collector{e} }

// collector is an Engine as Prometheus sees it.
type collector struct{ *Engine }

// Describe implements prometheus.Collector.
func (e collector) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range e.metrics.all() {
		c.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{descCacheObjects, descCacheBytes, descImages, descFuse} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (e collector) Collect(ch chan<- prometheus.Metric) {
	for _, c := range e.metrics.all() {
		c.Collect(ch)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	bytes, n := e.objects.Usage()
	gauge(descCacheObjects, float64(n))
	gauge(descCacheBytes, float64(bytes))
	var complete, incomplete float64
	e.mu.Lock()
	for _, img := range e.images {
		if img.rec.Complete {
			complete++
		} else {
			incomplete++
		}
	}
	e.mu.Unlock()
	gauge(descImages, complete, "complete")
	gauge(descImages, incomplete, "incomplete")
	for op, count := range lazyfs.Requests(e.lazyState()) {
		ch <- prometheus.MustNewConstMetric(descFuse, prometheus.CounterValue, float64(count), op)
	}
}
