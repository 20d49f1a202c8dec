// Package starlight serves the Starlight API on containerd's socket: what the
// engine knows of pulled images and proxies.
package starlight

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Engine is what the service needs of engine.Engine.
type Engine interface {
	Status(ref string) []engine.ImageStatus
	Wait(ctx context.Context, ref string, report func(engine.ImageStatus) error) error
	Proxies() []engine.Proxy
	Ping(ctx context.Context, address string) (time.Duration, wire.Ping, error)
	AddProxy(p engine.Proxy) error
	RemoveProxy(address string) error
	Notify(ctx context.Context, ref, platform string, creds *wire.Credentials, report func(proxy string, p wire.Progress) error) error
	Plan(ctx context.Context, r engine.PlanRequest, report func(wire.Progress) error) (plan *wire.Plan, proxy string, err error)
	MissingFiles(ctx context.Context, namespace, name string, limit int) (names []string, files, bytes int64, err error)
	Fsck(ctx context.Context, repair bool, report func(engine.FsckProgress) error) (engine.FsckSummary, error)
	DiskUsage(ctx context.Context) ([]engine.DiskUsage, error)
	Collect(ctx context.Context) (engine.Collected, error)
	Unnamed() []engine.Unnamed
	Name(u engine.Unnamed, names []string) error
}

var _ Engine = (*engine.Engine)(nil)

// Images tells whether a namespace has an image of a name. The engine remembers
// what was pulled, but not that it was removed.
type Images interface {
	Has(ctx context.Context, namespace, name string) (bool, error)
	// Collect has containerd forget what nothing refers to.
	Collect(ctx context.Context) error
	// Named lists the names of the images with a manifest.
	Named(ctx context.Context, namespace string, manifest digest.Digest) ([]string, error)
}

// settling is how long after the start of its pull an image may not be in the
// image store yet, and is shown nevertheless.
const settling = time.Minute

// Service implements the API over an Engine.
type Service struct {
	api.UnimplementedStarlightServer
	engine   Engine
	images   Images
	validate Validate
}

// New returns the service over e, which leaves out what is not in images any more.
func New(e Engine, images Images, validate Validate) *Service {
	return &Service{engine: e, images: images, validate: validate}
}

// Register adds the service to containerd's gRPC server.
func (s *Service) Register(server *grpc.Server) error {
	api.RegisterStarlightServer(server, s)
	if e, ok := s.engine.(Tracer); ok {
		api.RegisterTracesServer(server, &traces{engine: e})
	}
	return nil
}

// Status implements api.StarlightServer.
func (s *Service) Status(ctx context.Context, r *api.StatusRequest) (*api.StatusResponse, error) {
	var resp api.StatusResponse
	all, err := s.present(ctx, r.GetNamespace(), r.GetRef())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	for _, st := range all {
		resp.Images = append(resp.Images, image(st))
	}
	if r.GetRef() != "" && len(resp.Images) == 0 {
		return nil, errgrpc.ToGRPC(unknown(r.GetRef()))
	}
	return &resp, nil
}

// Wait implements api.StarlightServer.
func (s *Service) Wait(r *api.WaitRequest, stream grpc.ServerStreamingServer[api.WaitResponse]) error {
	if r.GetRef() == "" {
		return errgrpc.ToGRPC(fmt.Errorf("wait needs a reference: %w", errdefs.ErrInvalidArgument))
	}
	all, err := s.present(stream.Context(), r.GetNamespace(), r.GetRef())
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	if len(all) == 0 {
		return errgrpc.ToGRPC(unknown(r.GetRef()))
	}
	err = s.engine.Wait(stream.Context(), r.GetRef(), func(st engine.ImageStatus) error {
		if ns := r.GetNamespace(); ns != "" && ns != st.Namespace {
			return nil // the same contents: they become complete together
		}
		return stream.Send(&api.WaitResponse{Image: image(st)})
	})
	return errgrpc.ToGRPC(err)
}

// Proxies implements api.StarlightServer.
func (s *Service) Proxies(context.Context, *api.ProxiesRequest) (*api.ProxiesResponse, error) {
	var resp api.ProxiesResponse
	for _, p := range s.engine.Proxies() {
		resp.Proxies = append(resp.Proxies, &api.Proxy{Address: p.Address, Registries: p.Registries, Added: p.Added})
	}
	return &resp, nil
}

// Ping implements api.StarlightServer. Clients of the socket cannot make
// containerd talk to hosts other than configured proxies.
func (s *Service) Ping(ctx context.Context, r *api.PingRequest) (*api.PingResponse, error) {
	configured := slices.ContainsFunc(s.engine.Proxies(), func(p engine.Proxy) bool { return p.Address == r.GetAddress() })
	if !configured {
		return nil, errgrpc.ToGRPC(fmt.Errorf("proxy %q is not configured: %w", r.GetAddress(), errdefs.ErrNotFound))
	}
	rtt, p, err := s.engine.Ping(ctx, r.GetAddress())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &api.PingResponse{RoundTrip: durationpb.New(rtt), Version: text(p.Version), Protocol: int32(p.Protocol)}, nil
}

// Version implements api.StarlightServer.
func (s *Service) Version(context.Context, *api.VersionRequest) (*api.VersionResponse, error) {
	return &api.VersionResponse{Version: version.Version, Revision: version.Revision}, nil
}

// name tells the engine the names that images got after it had pulled them.
func (s *Service) name(ctx context.Context) error {
	for _, u := range s.engine.Unnamed() {
		names, err := s.images.Named(ctx, u.Namespace, u.Manifest)
		if err != nil {
			return err
		}
		if err := s.engine.Name(u, likeliest(u.Ref, names)); err != nil {
			return err
		}
	}
	return nil
}

// likeliest picks the names under which a repository was pulled: those with a tag,
// or those of the repository, or any that is not merely the ID of an image, as CRI
// gives.
func likeliest(ref string, names []string) []string {
	repo := repository(ref)
	rank := func(name string) int {
		switch {
		case !strings.Contains(name, "/"):
			return 0
		case repository(name) != repo:
			return 1
		case strings.Contains(name, "@"):
			return 2
		default:
			return 3
		}
	}
	best := 1
	for _, n := range names {
		best = max(best, rank(n))
	}
	return slices.DeleteFunc(names, func(n string) bool { return rank(n) != best })
}

// repository is a reference without port, tag and digest.
func repository(ref string) string {
	name, _, _ := strings.Cut(ref, "@")
	host, path, _ := strings.Cut(name, "/")
	host, _, _ = strings.Cut(host, ":")
	path, _, _ = strings.Cut(path, ":")
	return host + "/" + path
}

// present lists by namespace and reference what the engine knows of the images
// that are there; "" matches all.
func (s *Service) present(ctx context.Context, namespace, ref string) ([]engine.ImageStatus, error) {
	if err := s.name(ctx); err != nil {
		return nil, err
	}
	var out []engine.ImageStatus
	for _, st := range s.engine.Status(ref) {
		if namespace != "" && st.Namespace != namespace {
			continue
		}
		has, err := s.images.Has(ctx, st.Namespace, st.Ref)
		if err != nil {
			return nil, err
		}
		if has || time.Since(st.Pulled) < settling {
			out = append(out, st)
		}
	}
	slices.SortStableFunc(out, func(a, b engine.ImageStatus) int {
		if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
			return c
		}
		return strings.Compare(a.Ref, b.Ref)
	})
	return out, nil
}

func unknown(ref string) error {
	return fmt.Errorf("image %q was not pulled with the starlight snapshotter: %w", ref, errdefs.ErrNotFound)
}

func image(st engine.ImageStatus) *api.Image {
	i := &api.Image{
		Namespace: text(st.Namespace), Ref: text(st.Ref), Target: st.Target.String(),
		Reason: text(st.Reason), Proxy: text(st.Proxy),
		WireBytes: st.WireBytes,
		Objects:   st.Objects, ObjectsLocal: st.ObjectsLocal,
		Bytes: st.Bytes, BytesLocal: st.BytesLocal,
		Rate: st.Rate, RoundTrips: st.RoundTrips, Complete: st.Complete, Vouched: st.Vouched,
		ReadyAfter: durationpb.New(st.Ready), DoneAfter: durationpb.New(st.Done),
	}
	switch st.Mode {
	case engine.ModeDelta:
		i.Mode = api.Mode_MODE_DELTA
	case engine.ModePlain:
		i.Mode = api.Mode_MODE_PLAIN
	}
	if !st.Pulled.IsZero() {
		i.Pulled = timestamppb.New(st.Pulled)
	}
	return i
}

// text makes a string fit for proto3, which refuses anything that is not UTF-8:
// reasons quote what came from the network.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
