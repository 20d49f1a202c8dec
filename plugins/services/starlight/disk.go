package starlight

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
)

// maxMissing bounds the names in an answer, which has to fit into one message.
const maxMissing = 10_000

// Missing implements api.StarlightServer.
func (s *Service) Missing(ctx context.Context, r *api.MissingRequest) (*api.MissingResponse, error) {
	all, err := s.present(ctx, r.GetNamespace(), r.GetRef())
	switch {
	case err != nil:
		return nil, errgrpc.ToGRPC(err)
	case len(all) == 0 || r.GetRef() == "":
		return nil, errgrpc.ToGRPC(unknown(r.GetRef()))
	case len(all) > 1:
		return nil, errgrpc.ToGRPC(fmt.Errorf("%d namespaces have image %q, name one of them: %w", len(all), r.GetRef(), errdefs.ErrInvalidArgument))
	}
	names, files, bytes, err := s.engine.MissingFiles(ctx, all[0].Namespace, r.GetRef(), min(int(r.GetLimit()), maxMissing))
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	for i := range names {
		names[i] = text(names[i])
	}
	return &api.MissingResponse{Names: names, Files: files, Bytes: bytes}, nil
}

// Fsck implements api.StarlightServer.
func (s *Service) Fsck(r *api.FsckRequest, stream grpc.ServerStreamingServer[api.FsckResponse]) error {
	sum, err := s.engine.Fsck(stream.Context(), r.GetRepair(), func(p engine.FsckProgress) error {
		out := &api.FsckResponse{Stage: p.Stage, Done: p.Done, Total: p.Total}
		if q := p.Problem; q != nil {
			out.Problem = &api.Problem{Kind: q.Kind, Name: text(q.Name), Detail: text(q.Detail), Repaired: q.Repaired}
		}
		return stream.Send(out)
	})
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	return stream.Send(&api.FsckResponse{Summary: &api.FsckSummary{
		Images: sum.Images, Layers: sum.Layers, Trees: sum.Trees, Objects: sum.Objects, Bytes: sum.Bytes,
		Problems: sum.Problems, Repaired: sum.Repaired,
	}})
}

// DiskUsage implements api.StarlightServer.
func (s *Service) DiskUsage(ctx context.Context, _ *api.DiskUsageRequest) (*api.DiskUsageResponse, error) {
	all, err := s.engine.DiskUsage(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	var resp api.DiskUsageResponse
	for _, u := range all {
		resp.Usages = append(resp.Usages, &api.Usage{Category: u.Category, Path: text(u.Path), Files: u.Files, Bytes: u.Bytes})
	}
	return &resp, nil
}

// Collect implements api.StarlightServer. containerd collects first, for it knows
// what images and containers refer to.
func (s *Service) Collect(ctx context.Context, _ *api.CollectRequest) (*api.CollectResponse, error) {
	if err := s.images.Collect(ctx); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("containerd's garbage collection: %w", err))
	}
	c, err := s.engine.Collect(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &api.CollectResponse{Images: c.Images, Objects: c.Objects, Bytes: c.Bytes}, nil
}
