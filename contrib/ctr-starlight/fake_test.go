package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

var update = flag.Bool("update", false, "write golden files")

const (
	app1  = "registry.example/app:1"
	plain = "registry.example/plain:1"
)

// images of a node: complete, on the way, and plain.
func images() []*api.Image {
	return []*api.Image{
		{
			Namespace: "default", Ref: app1, Target: "sha256:aa", Mode: api.Mode_MODE_DELTA, Proxy: "http://near:8090",
			WireBytes: 9_000_000, Objects: 1200, ObjectsLocal: 1200, Bytes: 31_000_000, BytesLocal: 31_000_000,
			RoundTrips: 1, Complete: true, Pulled: timestamppb.New(time.Unix(1700000000, 0)),
			ReadyAfter: durationpb.New(250 * time.Millisecond), DoneAfter: durationpb.New(3 * time.Second), Vouched: true,
		},
		half(),
		{Namespace: "k8s.io", Ref: plain, Target: "sha256:cc", Mode: api.Mode_MODE_PLAIN, Reason: "proxy http://near:8090:\n\x1b[31mnot_found", Complete: true},
	}
}

func half() *api.Image {
	return &api.Image{
		Namespace: "default", Ref: "registry.example/app:2", Target: "sha256:bb", Mode: api.Mode_MODE_DELTA, Proxy: "http://near:8090",
		WireBytes: 500_000, Objects: 1300, ObjectsLocal: 1299, Bytes: 31_000_000, BytesLocal: 30_999_999, Rate: 1.25e7, RoundTrips: 2,
	}
}

// fake is the service with a fixed state.
type fake struct {
	api.UnimplementedStarlightServer
	images  []*api.Image
	proxies []*api.Proxy
	waits   []*api.Image
	waitEnd func(context.Context) error
	rtts    []time.Duration
	pings   int
	problem *api.Problem
}

func (f *fake) Status(_ context.Context, r *api.StatusRequest) (*api.StatusResponse, error) {
	var resp api.StatusResponse
	for _, i := range f.images {
		if (r.GetRef() == "" || r.GetRef() == i.GetRef()) && (r.GetNamespace() == "" || r.GetNamespace() == i.GetNamespace()) {
			resp.Images = append(resp.Images, i)
		}
	}
	if r.GetRef() != "" && len(resp.Images) == 0 {
		return nil, status.Errorf(codes.NotFound, "image %q was not pulled", r.GetRef())
	}
	return &resp, nil
}

func (f *fake) Wait(_ *api.WaitRequest, s grpc.ServerStreamingServer[api.WaitResponse]) error {
	for _, i := range f.waits {
		if err := s.Send(&api.WaitResponse{Image: i}); err != nil {
			return err
		}
	}
	if f.waitEnd != nil {
		return f.waitEnd(s.Context())
	}
	return nil
}

func (f *fake) Proxies(context.Context, *api.ProxiesRequest) (*api.ProxiesResponse, error) {
	return &api.ProxiesResponse{Proxies: f.proxies}, nil
}

func (f *fake) Ping(_ context.Context, r *api.PingRequest) (*api.PingResponse, error) {
	if strings.Contains(r.GetAddress(), "down") {
		return nil, status.Errorf(codes.Unavailable, "proxy %s: connection refused", r.GetAddress())
	}
	rtt := f.rtts[f.pings%len(f.rtts)]
	f.pings++
	return &api.PingResponse{RoundTrip: durationpb.New(rtt), Version: "0.1.0", Protocol: 1}, nil
}

func (f *fake) AddProxy(_ context.Context, r *api.AddProxyRequest) (*api.AddProxyResponse, error) {
	for _, p := range f.proxies {
		if p.GetAddress() == r.GetAddress() {
			return nil, status.Errorf(codes.AlreadyExists, "proxy %q: already exists", r.GetAddress())
		}
	}
	f.proxies = append(f.proxies, &api.Proxy{Address: r.GetAddress(), Registries: r.GetRegistries(), Added: true})
	return &api.AddProxyResponse{}, nil
}

func (f *fake) RemoveProxy(_ context.Context, r *api.RemoveProxyRequest) (*api.RemoveProxyResponse, error) {
	for i, p := range f.proxies {
		if p.GetAddress() == r.GetAddress() {
			f.proxies = slices.Delete(f.proxies, i, i+1)
			return &api.RemoveProxyResponse{Configured: !p.GetAdded()}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "proxy %q is not configured: not found", r.GetAddress())
}

func (f *fake) Notify(r *api.NotifyRequest, s grpc.ServerStreamingServer[api.NotifyResponse]) error {
	if r.GetUsername() != "" && (r.GetUsername() != "alice" || r.GetSecret() != "pass:word") {
		return status.Error(codes.Unauthenticated, "unauthorized")
	}
	for _, m := range []*api.NotifyResponse{{Proxy: "http://near:8090", Done: 1, Total: 2}, {Proxy: "http://near:8090", Indexed: true}} {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) Plan(r *api.PlanRequest, s grpc.ServerStreamingServer[api.PlanResponse]) error {
	if r.GetUsername() != "" {
		return status.Error(codes.Unauthenticated, "proxy http://near:8090: unauthorized: "+r.GetRef()+": the registry refuses these credentials")
	}
	p := &api.Plan{
		Proxy: "http://near:8090", Manifest: "sha256:bb", Layers: 8, KnownLayers: 2, LayerBytes: 33_000_000, PlainBytes: 20_000_000,
		Total: &api.Share{Objects: 1300, Bytes: 84_000_000}, Local: &api.Share{Objects: 1290, Bytes: 70_000_000},
		Patched: &api.Share{Objects: 7, Bytes: 13_000_000, WireBytes: 700_000}, New: &api.Share{Objects: 3, Bytes: 1_000_000, WireBytes: 300_000},
		MetadataBytes: 40_000, WireBytes: 1_040_010, MostWireBytes: 6_000_000,
		Files: []*api.PlanFile{
			{Path: "/usr/bin/redis", Bytes: 12_000_000, WireBytes: 600_000, Patched: true},
			{Path: "/etc/\x1b[31mred", Bytes: 900_000, WireBytes: 290_000},
		},
	}
	if len(r.GetFrom()) == 0 {
		p.StrangeLayers = 1
	}
	p.Files = p.Files[:min(int(r.GetTop()), len(p.Files))]
	for _, m := range []*api.PlanResponse{{Stage: "plan", Done: 1, Total: 2}, {Plan: p}} {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) Missing(context.Context, *api.MissingRequest) (*api.MissingResponse, error) {
	return &api.MissingResponse{Names: []string{"/usr/bin/redis", "/usr/lib/\x1b[31mred"}, Files: 3, Bytes: 5 << 20}, nil
}

func (f *fake) Fsck(r *api.FsckRequest, s grpc.ServerStreamingServer[api.FsckResponse]) error {
	sum := &api.FsckSummary{Images: 2, Layers: 5, Trees: 2, Objects: 1300, Bytes: 31 << 20}
	if f.problem != nil {
		p := proto.CloneOf(f.problem)
		if sum.Problems = 1; r.GetRepair() {
			p.Repaired, sum.Repaired = true, 1
		}
		if err := s.Send(&api.FsckResponse{Problem: p}); err != nil {
			return err
		}
	}
	for _, m := range []*api.FsckResponse{{Stage: "objects", Done: 1, Total: 2}, {Summary: sum}} {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) DiskUsage(context.Context, *api.DiskUsageRequest) (*api.DiskUsageResponse, error) {
	return &api.DiskUsageResponse{Usages: []*api.Usage{
		{Category: "objects", Path: "/var/lib/x/objects", Files: 1300, Bytes: 31 << 20},
		{Category: "toc", Path: "/var/lib/x/toc", Files: 5, Bytes: 20 << 10},
	}}, nil
}

func (f *fake) Collect(context.Context, *api.CollectRequest) (*api.CollectResponse, error) {
	return &api.CollectResponse{Images: 1, Objects: 12, Bytes: 3 << 20}, nil
}

func (f *fake) Version(context.Context, *api.VersionRequest) (*api.VersionResponse, error) {
	return &api.VersionResponse{Version: "2.4.2+starlight.0.1.0", Revision: "abc"}, nil
}

// listen serves register on a socket and returns its path.
func listen(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // before it served
			t.Error(err)
		}
	})
	return socket
}

func (f *fake) listen(t *testing.T) string {
	return listen(t, func(s *grpc.Server) { api.RegisterStarlightServer(s, f) })
}

// execute runs a command line against a socket, and returns everything it does,
// in one text with the socket's name taken out.
func execute(ctx context.Context, socket string, args ...string) string {
	var stdout, stderr bytes.Buffer
	code := run(ctx, append([]string{"ctr-starlight", "--address", socket}, args...), &stdout, &stderr)
	var out strings.Builder
	out.WriteString("$ ctr-starlight " + strings.Join(args, " ") + "\n")
	out.WriteString(stdout.String())
	for line := range strings.Lines(stderr.String()) {
		out.WriteString("[stderr] " + line)
	}
	if code != 0 {
		out.WriteString("[exit 1]\n")
	}
	return strings.ReplaceAll(out.String(), socket, "SOCKET")
}

// golden compares with testdata/<name>.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
