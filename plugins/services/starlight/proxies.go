package starlight

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/platforms"
	"google.golang.org/grpc"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Validate checks a proxy as the configuration does.
type Validate func(*api.AddProxyRequest) (engine.Proxy, error)

// AddProxy implements api.StarlightServer.
func (s *Service) AddProxy(_ context.Context, r *api.AddProxyRequest) (*api.AddProxyResponse, error) {
	p, err := s.validate(r)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument))
	}
	if err := s.engine.AddProxy(p); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &api.AddProxyResponse{}, nil
}

// RemoveProxy implements api.StarlightServer.
func (s *Service) RemoveProxy(_ context.Context, r *api.RemoveProxyRequest) (*api.RemoveProxyResponse, error) {
	var resp api.RemoveProxyResponse
	for _, p := range s.engine.Proxies() {
		if p.Address == r.GetAddress() {
			resp.Configured = !p.Added
		}
	}
	if err := s.engine.RemoveProxy(r.GetAddress()); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &resp, nil
}

// Notify implements api.StarlightServer.
func (s *Service) Notify(r *api.NotifyRequest, stream grpc.ServerStreamingServer[api.NotifyResponse]) error {
	platform := r.GetPlatform()
	if platform == "" {
		platform = platforms.Format(platforms.DefaultSpec())
	}
	creds := credentials(r.GetUsername(), r.GetSecret())
	err := s.engine.Notify(stream.Context(), r.GetRef(), platform, creds, func(proxy string, p wire.Progress) error {
		return stream.Send(&api.NotifyResponse{Proxy: text(proxy), Indexed: p.Stage == engine.StageIndexed, Done: p.Done, Total: p.Total})
	})
	return errgrpc.ToGRPC(err)
}
