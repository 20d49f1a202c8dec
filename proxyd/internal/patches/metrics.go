package patches

import "github.com/prometheus/client_golang/prometheus"

// The results of making a patch.
const (
	resultMade    = "made"
	resultDear    = "dear" // saves too little
	resultFailed  = "failed"
	resultDropped = "dropped" // too many were waiting
)

type metrics struct {
	made     *prometheus.CounterVec
	duration prometheus.Histogram
	hits     prometheus.Counter
	evicted  prometheus.Counter
	bytes    prometheus.Gauge
	queued   prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		made: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "proxyd_patches_total", Help: "Patches by what came of making them.",
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "proxyd_patch_duration_seconds", Help: "Time to make and check a patch.",
			Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30, 100},
		}),
		hits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "proxyd_patch_hits_total", Help: "Patches that were there when they were wanted.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "proxyd_patches_evicted_total", Help: "Patches that made room for others.",
		}),
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "proxyd_patch_bytes", Help: "Bytes of the patches that are kept.",
		}),
		queued: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "proxyd_patches_queued", Help: "Patches that wait to be made or are being made.",
		}),
	}
	for _, result := range []string{resultMade, resultDear, resultFailed, resultDropped} {
		m.made.WithLabelValues(result)
	}
	r.MustRegister(m.made, m.duration, m.hits, m.evicted, m.bytes, m.queued)
	return m
}
