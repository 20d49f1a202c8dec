package engine

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// gather returns what a scrape shows: "name{value of the label}" and the sums of
// histograms under "name_count".
func gather(t *testing.T, e *Engine) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(e.Metrics()); err != nil {
		t.Fatal(err)
	}
	if problems, err := testutil.GatherAndLint(r); err != nil || len(problems) > 0 {
		t.Errorf("metrics are against the conventions: %v, %v", problems, err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "{" + l.GetValue() + "}"
			}
			if h := m.GetHistogram(); h != nil {
				out[name+"_count"] = float64(h.GetSampleCount())
				continue
			}
			out[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}

func TestMetricsTellWhereContentsCameFrom(t *testing.T) {
	p := newFakeProxy(t)
	e := openEngine(t, t.TempDir(), p)
	const update = "registry.test/app:2"
	p.add(testRef, newTestImage(t, manyFiles(1, 50)))
	p.add(update, newTestImage(t, manyFiles(1, 50), files{"new": "content", "zz-last": "needed now"}))
	pull(t, e, testRef)
	first := wait(t, e, testRef)

	hold := make(chan struct{})
	p.set(func(r *http.Request, _ toc.Object, b []byte) ([]byte, error) {
		if r.URL.Path == wire.RouteDelta {
			<-hold
		}
		return b, nil
	})
	root := mountRoot(t, e, pull(t, e, update))
	if _, err := os.ReadFile(filepath.Join(root, "zz-last")); err != nil {
		t.Error(err)
	}
	close(hold)
	second := wait(t, e, update)
	e.Plain("default", "registry.test/plain:1", ErrNotAccelerated)

	got := gather(t, e)
	for name, want := range map[string]float64{
		"starlight_objects_total{stream}":                  float64(first.Objects + 1),
		"starlight_objects_total{on_demand}":               1,
		"starlight_objects_total{local}":                   float64(second.Objects - 2),
		"starlight_object_bytes_total{local}":              float64(first.Bytes),
		"starlight_pulls_total{delta}":                     2,
		"starlight_pulls_total{plain}":                     1,
		"starlight_pull_ready_duration_seconds_count":      2,
		"starlight_pull_duration_seconds_count":            2,
		"starlight_resumes_total{stream}":                  0,
		"starlight_verification_failures_total{stream}":    0,
		"starlight_blocked_reads":                          0,
		"starlight_read_errors_total{EIO}":                 0,
		"starlight_cache_objects":                          float64(second.Objects),
		"starlight_images{complete}":                       2,
		"starlight_images{incomplete}":                     0,
		"starlight_blocked_read_duration_seconds_count":    1,
		"starlight_received_bytes_total{registry}":         0,
		"starlight_verification_failures_total{on_demand}": 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s: got %v (there: %v), want %v", name, v, ok, want)
		}
	}
	for _, name := range []string{
		"starlight_received_bytes_total{stream}", "starlight_received_bytes_total{on_demand}", "starlight_cache_bytes",
		"starlight_fuse_requests_total{lookup}", "starlight_fuse_requests_total{read}",
	} {
		if got[name] <= 0 {
			t.Errorf("%s: got %v, want more than 0", name, got[name])
		}
	}
}

func TestMetricsCountFailures(t *testing.T) {
	bad := newFakeProxy(t)
	bad.add(testRef, newTestImage(t, manyFiles(1, 20)))
	bad.set(func(_ *http.Request, _ toc.Object, b []byte) ([]byte, error) {
		b[0] ^= 1
		return b, nil
	})
	e := openEngine(t, t.TempDir(), bad)
	e.cfg.ReadTimeout = time.Second
	dir := mountRoot(t, e, pull(t, e, testRef))
	// Wrong bytes count as a sign of life, so the proxy has to go for the read to fail.
	for gather(t, e)["starlight_verification_failures_total{stream}"] == 0 {
		select {
		case <-t.Context().Done():
			t.Fatal("wrong contents are not counted")
		case <-time.After(10 * time.Millisecond):
		}
	}
	bad.CloseClientConnections()
	bad.Close()
	if _, err := os.ReadFile(filepath.Join(dir, "big")); err == nil {
		t.Error("a file whose contents never came can be read")
	}
	got := gather(t, e)
	for _, name := range []string{"starlight_resumes_total{stream}", "starlight_read_errors_total{EIO}", "starlight_blocked_read_duration_seconds_count"} {
		if got[name] < 1 {
			t.Errorf("%s: got %v, want at least 1", name, got[name])
		}
	}
	if got["starlight_objects_total{stream}"] != 0 || got["starlight_images{incomplete}"] != 1 {
		t.Errorf("got %v", got)
	}
}
