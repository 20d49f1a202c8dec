package integration

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// metrics are what a scrape of containerd's endpoint shows: "name{label value}".
type metrics map[string]float64

func scrape(t *testing.T, from *wan.Namespace, url string) metrics {
	t.Helper()
	code, body := get(t, from, url)
	if code != http.StatusOK {
		t.Fatalf("%s answers %d: %s", url, code, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	out := metrics{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			key := name
			for _, l := range m.GetLabel() {
				key += "{" + l.GetValue() + "}"
			}
			out[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetHistogram().GetSampleSum()
			if m.GetHistogram() != nil {
				out[key+"_count"] = float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return out
}

// get asks from a namespace and returns status and body.
func get(t *testing.T, from *wan.Namespace, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := from.Client()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// containerd's metrics endpoint tells where contents came from, how long pulls and
// reads took, and what is on the disk; its log has one line for each pull.
func TestMetricsAndLogOfPulls(t *testing.T) {
	w := newWorld(t, slow)
	p := w.proxyd()
	v1, v2 := w.push("tinyhttp", "v1"), w.push("tinyhttp", "v2")
	w.warm(p, v1, v2)
	link := slow
	link.Down = 5 // slow enough that the application has to wait for its program
	if err := w.Link.Set(link); err != nil {
		t.Fatal(err)
	}
	const address = "127.0.0.1:1338"
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}, Config: "[plugins.'io.containerd.server.v1.metrics']\n  address = \"" + address + "\"\n"})
	look := func() metrics { return scrape(t, w.Link.Edge, "http://"+address+"/v1/metrics") }

	if m := look(); m["starlight_pulls_total{delta}"] != 0 || m["starlight_cache_objects"] != 0 {
		t.Errorf("before the first pull: %v", m)
	}
	n.pull(v1)
	n.runReady(v1, "app", starlight, image(t, "tinyhttp", "v1").Ready) // while most is on the way
	if err := w.Link.Set(lan); err != nil {
		t.Fatal(err)
	}
	n.wait(v1)
	first, s1 := look(), n.status1(v1)
	came := first["starlight_objects_total{stream}"] + first["starlight_objects_total{on_demand}"]
	if came != float64(s1.Objects) || first["starlight_cache_objects"] != float64(s1.Objects) {
		t.Errorf("got %v objects by stream and on demand, and %v in the cache, want %d of both", came, first["starlight_cache_objects"], s1.Objects)
	}
	wire := first["starlight_received_bytes_total{stream}"] + first["starlight_received_bytes_total{on_demand}"]
	if wire <= 0 || wire > float64(s1.WireBytes) { // which has the requests, too
		t.Errorf("got %v bytes received, want no more than the %d of the status", wire, s1.WireBytes)
	}
	for _, name := range []string{
		"starlight_pulls_total{delta}", "starlight_pull_ready_duration_seconds_count", "starlight_pull_duration_seconds_count",
		"starlight_images{complete}",
	} {
		if first[name] != 1 {
			t.Errorf("%s: got %v after a pull, want 1", name, first[name])
		}
	}
	for _, name := range []string{
		"starlight_blocked_read_duration_seconds_count", "starlight_blocked_read_duration_seconds", "starlight_fuse_requests_total{read}",
		"starlight_cache_bytes", "starlight_pull_duration_seconds",
	} {
		if first[name] <= 0 {
			t.Errorf("%s: got %v, want more than 0", name, first[name])
		}
	}
	n.pull(v2)
	n.wait(v2)
	second, s2 := look(), n.status1(v2)
	fresh := second["starlight_objects_total{stream}"] - first["starlight_objects_total{stream}"]
	if got := second["starlight_objects_total{local}"]; got == 0 || got+fresh != float64(s2.Objects) {
		t.Errorf("got %v objects that were local and %v sent for the update, want %d in all", got, fresh, s2.Objects)
	}
	p.Kill()
	plain, err := w.Push(t.Context(), image(t, "tinyhttp", "v1").Layout, "copy", "v1")
	if err != nil {
		t.Fatal(err)
	}
	n.pull(plain)
	if m := look(); m["starlight_pulls_total{plain}"] != 1 || m["starlight_verification_failures_total{stream}"] != 0 {
		t.Errorf("after a plain pull: %v", m)
	}
	for ref, want := range map[string][]string{
		v1:    {"mode=delta", "proxy=", "roundtrips=", "bytes=", "ready=", "duration="},
		v2:    {"mode=delta", "roundtrips=", "duration="},
		plain: {"mode=plain", "reason=", "bytes=", "duration="},
	} {
		var lines []string
		for line := range strings.Lines(n.Log()) {
			if strings.Contains(line, "image pulled") && strings.Contains(line, ref) {
				lines = append(lines, line)
			}
		}
		if len(lines) != 1 {
			t.Errorf("%s: got lines %q, want one", ref, lines)
			continue
		}
		for _, field := range want {
			if !strings.Contains(lines[0], field) {
				t.Errorf("%s: got %q, want %s in it", ref, lines[0], field)
			}
		}
	}
}

// receiver is a collector of traces, by OTLP over HTTP.
type receiver struct {
	mu    sync.Mutex
	spans map[string]*tracepb.Span // by name, the last
}

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	b, err := io.ReadAll(req.Body)
	var export collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(b, &export)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rs := range export.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				r.spans[s.GetName()] = s
			}
		}
	}
}

func (r *receiver) have() map[string]*tracepb.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.spans)
}

// A pull can be followed in traces: the pull, its request, and its header and body.
func TestTracesOfPulls(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	l, err := w.Link.Edge.Listen(t.Context(), "127.0.0.1:4318")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{spans: map[string]*tracepb.Span{}}
	srv := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(l) }() // until it is closed
	t.Cleanup(func() { _ = srv.Close() })
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}, Traces: "http://" + l.Addr().String() + "/v1/traces"})
	ref := w.push("tinyhttp", "v1")
	n.pull(ref)
	n.wait(ref)
	// What is not sent yet is sent at the end.
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	got := r.have()
	parents := map[string]string{
		"starlight.request": "starlight.pull", "starlight.header": "starlight.request", "starlight.body": "starlight.pull",
	}
	for child, parent := range parents {
		c, p := got[child], got[parent]
		if c == nil || p == nil {
			t.Fatalf("got spans %q, want %s and %s", slices.Sorted(maps.Keys(got)), child, parent)
		}
		if string(c.GetTraceId()) != string(p.GetTraceId()) || string(c.GetParentSpanId()) != string(p.GetSpanId()) {
			t.Errorf("%s is not below %s", child, parent)
		}
		if c.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
			t.Errorf("%s: %s", child, c.GetStatus().GetMessage())
		}
		if c.GetEndTimeUnixNano() < c.GetStartTimeUnixNano() || c.GetStartTimeUnixNano() < p.GetStartTimeUnixNano() {
			t.Errorf("%s begins before %s, or ends before it begins", child, parent)
		}
	}
	for _, a := range got["starlight.pull"].GetAttributes() {
		if a.GetKey() == "image.ref" && a.GetValue().GetStringValue() == ref {
			return
		}
	}
	t.Errorf("got attributes %v, want the reference", got["starlight.pull"].GetAttributes())
}
