package starlight_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
	service "github.com/starlight-delta/starlight/plugins/services/starlight"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// fake is an engine with a fixed state.
type fake struct {
	service.Engine // what the test does not use
	images         []engine.ImageStatus
	reports        []engine.ImageStatus
	err            error
	removed        string // reference of an image that is in images no more
	unnamed        []engine.Unnamed
	names          []string // of every manifest
	named          map[string][]string
}

func (f *fake) Unnamed() []engine.Unnamed { return f.unnamed }

func (f *fake) Name(u engine.Unnamed, names []string) error {
	f.named[u.Ref] = names
	return nil
}

func (f *fake) Named(context.Context, string, digest.Digest) ([]string, error) {
	return slices.Clone(f.names), nil
}

// store is the image store of a fake.
type store struct{ *fake }

func (store) Collect(context.Context) error { return nil }

func (f *fake) Has(_ context.Context, _, name string) (bool, error) { return name != f.removed, nil }

func (f *fake) Fsck(_ context.Context, repair bool, report func(engine.FsckProgress) error) (engine.FsckSummary, error) {
	err := report(engine.FsckProgress{Problem: &engine.Problem{Kind: "object", Name: "\xff", Detail: "wrong", Repaired: repair}})
	return engine.FsckSummary{Objects: 2, Problems: 1}, errors.Join(err, f.err)
}

func (f *fake) Plan(_ context.Context, r engine.PlanRequest, report func(wire.Progress) error) (*wire.Plan, string, error) {
	err := report(wire.Progress{Stage: "plan", Done: 1, Total: 2})
	return &wire.Plan{
		Layers: 3, KnownLayers: 1, MostWire: 8, New: wire.Share{Objects: len(r.From), Bytes: int64(r.Top), Wire: 5},
		Files: []wire.PlanFile{{Path: "a\xff", Bytes: 4, Wire: 2, Patched: r.Credentials != nil}},
	}, r.Ref + " " + r.Platform, errors.Join(err, f.err)
}

func TestPlanIsSentLast(t *testing.T) {
	stream, err := dial(t, &fake{}).Plan(t.Context(), &api.PlanRequest{Ref: "r", Platform: "linux/s390x", Username: "u", From: []string{"a", "b"}, Top: 9})
	if err != nil {
		t.Fatal(err)
	}
	var got []*api.PlanResponse
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	none := &api.Share{}
	want := []*api.PlanResponse{{Stage: "plan", Done: 1, Total: 2}, {Plan: &api.Plan{
		Proxy: "r linux/s390x", Manifest: (&wire.Plan{}).Manifest.String(), Layers: 3, KnownLayers: 1, MostWireBytes: 8,
		Total: none, Local: none, Patched: none, New: &api.Share{Objects: 2, Bytes: 9, WireBytes: 5},
		Files: []*api.PlanFile{{Path: "/a\uFFFD", Bytes: 4, WireBytes: 2, Patched: true}},
	}}}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Error(d)
	}
}

// collector notes who collects.
type collector struct {
	service.Engine
	service.Images
	calls []string
}

func (c *collector) Collect(context.Context) (engine.Collected, error) {
	c.calls = append(c.calls, "engine")
	return engine.Collected{Images: 1, Objects: 2, Bytes: 3}, nil
}

type collectingImages struct {
	service.Images
	c *collector
}

func (i collectingImages) Collect(context.Context) error {
	i.c.calls = append(i.c.calls, "containerd")
	return nil
}

func TestCollectAsksContainerdFirst(t *testing.T) {
	c := &collector{}
	r, err := service.New(c, collectingImages{c: c}, nil).Collect(t.Context(), &api.CollectRequest{})
	if err != nil || r.GetBytes() != 3 {
		t.Errorf("got %v, %v", r, err)
	}
	if d := cmp.Diff([]string{"containerd", "engine"}, c.calls); d != "" {
		t.Error(d)
	}
}

func TestFsckSendsTheSummaryLast(t *testing.T) {
	stream, err := dial(t, &fake{}).Fsck(t.Context(), &api.FsckRequest{Repair: true})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || !first.GetProblem().GetRepaired() || first.GetProblem().GetName() != "\uFFFD" {
		t.Errorf("got %v, %v", first, err)
	}
	last, err := stream.Recv()
	if err != nil || last.GetSummary().GetProblems() != 1 {
		t.Errorf("got %v, %v", last, err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end", err)
	}
}

func (f *fake) Status(ref string) []engine.ImageStatus {
	var out []engine.ImageStatus
	for _, st := range f.images {
		if ref == "" || ref == st.Ref {
			out = append(out, st)
		}
	}
	return out
}

func (f *fake) Wait(_ context.Context, _ string, report func(engine.ImageStatus) error) error {
	for _, st := range f.reports {
		if err := report(st); err != nil {
			return err
		}
	}
	return f.err
}

func (f *fake) Proxies() []engine.Proxy {
	return []engine.Proxy{{Address: "http://near:8090", Registries: []string{"*.example"}}, {Address: "http://far:8090", Registries: []string{"*"}}}
}

func (f *fake) Ping(context.Context, string) (time.Duration, wire.Ping, error) {
	return 1500 * time.Microsecond, wire.Ping{Version: "1.2.3", Protocol: 1}, f.err
}

// dial serves f on a unix socket, as containerd does, and connects to it.
func dial(t *testing.T, f *fake) api.StarlightClient {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	if err := service.New(f, store{f}, nil).Register(server); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return api.NewStarlightClient(conn)
}

var full = engine.ImageStatus{
	Namespace: "default", Ref: "registry.example/app:1", Target: digest.FromString("x"), Mode: engine.ModeDelta,
	Reason: "lost: \xff", Proxy: "http://near:8090", WireBytes: 1, Objects: 2, ObjectsLocal: 1, Bytes: 30, BytesLocal: 20,
	Rate: 1.5, RoundTrips: 3, Complete: true, Vouched: true, Pulled: time.Unix(1700000000, 5).UTC(), Ready: time.Second, Done: time.Minute,
}

var fullAPI = &api.Image{
	Namespace: "default", Ref: "registry.example/app:1", Target: digest.FromString("x").String(), Mode: api.Mode_MODE_DELTA,
	Reason: "lost: \uFFFD", Proxy: "http://near:8090", WireBytes: 1, Objects: 2, ObjectsLocal: 1, Bytes: 30, BytesLocal: 20,
	Rate: 1.5, RoundTrips: 3, Complete: true, Vouched: true, Pulled: timestamppb.New(time.Unix(1700000000, 5)),
	ReadyAfter: durationpb.New(time.Second), DoneAfter: durationpb.New(time.Minute),
}

func TestStatus(t *testing.T) {
	plain := engine.ImageStatus{Namespace: "k8s.io", Ref: "registry.example/b:1", Mode: engine.ModePlain, Reason: "no proxy"}
	plainAPI := &api.Image{Namespace: "k8s.io", Ref: "registry.example/b:1", Mode: api.Mode_MODE_PLAIN, Reason: "no proxy",
		ReadyAfter: durationpb.New(0), DoneAfter: durationpb.New(0)}
	removed := engine.ImageStatus{Namespace: "default", Ref: "registry.example/removed:1", Mode: engine.ModePlain}
	c := dial(t, &fake{images: []engine.ImageStatus{plain, removed, full}, removed: removed.Ref})
	tests := []struct {
		name string
		req  *api.StatusRequest
		want []*api.Image
	}{
		{"all, sorted", &api.StatusRequest{}, []*api.Image{fullAPI, plainAPI}},
		{"by reference", &api.StatusRequest{Ref: plain.Ref}, []*api.Image{plainAPI}},
		{"by namespace", &api.StatusRequest{Namespace: "default"}, []*api.Image{fullAPI}},
		{"empty namespace", &api.StatusRequest{Namespace: "other"}, nil},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := c.Status(t.Context(), tc.req)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&api.StatusResponse{Images: tc.want}, got, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, req := range []*api.StatusRequest{{Ref: "nope"}, {Ref: removed.Ref}, {Ref: full.Ref, Namespace: "k8s.io"}} {
		if _, err := c.Status(t.Context(), req); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			t.Errorf("%v: got %v, want not found", req, err)
		}
	}
}

func TestWait(t *testing.T) {
	half, other := full, full
	half.Complete = false
	other.Namespace = "other"
	f := &fake{images: []engine.ImageStatus{full}, reports: []engine.ImageStatus{half, other, full}}
	c := dial(t, f)
	receive := func(req *api.WaitRequest) (got []*api.Image, err error) {
		stream, err := c.Wait(t.Context(), req)
		if err != nil {
			return nil, err
		}
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return got, nil
			}
			if err != nil {
				return got, errgrpc.ToNative(err)
			}
			got = append(got, r.GetImage())
		}
	}
	got, err := receive(&api.WaitRequest{Ref: full.Ref, Namespace: "default"})
	if err != nil || len(got) != 2 || got[0].GetComplete() || !got[1].GetComplete() {
		t.Errorf("got %v, %v, want one image half, then complete", got, err)
	}
	if got, err := receive(&api.WaitRequest{Ref: full.Ref}); err != nil || len(got) != 3 {
		t.Errorf("all namespaces: got %v, %v, want 3 reports", got, err)
	}
	if _, err := receive(&api.WaitRequest{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no reference: got %v, want invalid argument", err)
	}
	if _, err := receive(&api.WaitRequest{Ref: "nope"}); !errdefs.IsNotFound(err) {
		t.Errorf("unknown reference: got %v, want not found", err)
	}
	f.err = fmt.Errorf("image was removed: %w", errdefs.ErrAborted)
	if _, err := receive(&api.WaitRequest{Ref: full.Ref}); !errdefs.IsAborted(err) {
		t.Errorf("got %v, want aborted", err)
	}
}

func TestProxiesPingVersion(t *testing.T) {
	f := &fake{}
	c := dial(t, f)
	proxies, err := c.Proxies(t.Context(), &api.ProxiesRequest{})
	if err != nil || len(proxies.GetProxies()) != 2 || proxies.GetProxies()[0].GetRegistries()[0] != "*.example" {
		t.Errorf("got %v, %v", proxies, err)
	}
	pong, err := c.Ping(t.Context(), &api.PingRequest{Address: "http://far:8090"})
	if err != nil || pong.GetRoundTrip().AsDuration() != 1500*time.Microsecond || pong.GetVersion() != "1.2.3" || pong.GetProtocol() != 1 {
		t.Errorf("got %v, %v", pong, err)
	}
	if _, err := c.Ping(t.Context(), &api.PingRequest{Address: "http://169.254.169.254"}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("host that is not configured: got %v, want not found", err)
	}
	f.err = fmt.Errorf("proxy is down: %w", errdefs.ErrUnavailable)
	if _, err := c.Ping(t.Context(), &api.PingRequest{Address: "http://far:8090"}); !errdefs.IsUnavailable(errgrpc.ToNative(err)) {
		t.Errorf("got %v, want unavailable", err)
	}
	if v, err := c.Version(t.Context(), &api.VersionRequest{}); err != nil || v.GetVersion() == "" {
		t.Errorf("got %v, %v", v, err)
	}
}

// An image that was pulled without a name gets the one of its repository.
func TestStatusNamesImages(t *testing.T) {
	const (
		ref  = "reg.example:5000/a/b@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
		id   = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
		tag  = "reg.example:5000/a/b:v1"
		tag2 = "reg.example:5000/a/b:v2"
		like = "reg.example:5000/a/bc:v1"
		far  = "other.example/a/b:v1"
	)
	for _, c := range []struct{ names, want []string }{
		{[]string{id, ref, tag, like, far, tag2}, []string{tag, tag2}},
		{[]string{id, ref, far}, []string{ref}},
		{[]string{id, like, far}, []string{like, far}},
		{[]string{id}, nil},
		{nil, nil},
	} {
		f := &fake{unnamed: []engine.Unnamed{{Namespace: "default", Ref: ref}}, names: c.names, named: map[string][]string{}}
		if _, err := service.New(f, store{f}, nil).Status(t.Context(), &api.StatusRequest{}); err != nil {
			t.Fatal(err)
		}
		if got := f.named[ref]; !slices.Equal(got, c.want) {
			t.Errorf("of %q: got %q, want %q", c.names, got, c.want)
		}
	}
}
