package starlight

import (
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/platforms"
	"google.golang.org/grpc"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Plan implements api.StarlightServer.
func (s *Service) Plan(r *api.PlanRequest, stream grpc.ServerStreamingServer[api.PlanResponse]) error {
	req := engine.PlanRequest{Ref: r.GetRef(), Platform: r.GetPlatform(), From: r.GetFrom(), Top: max(int(r.GetTop()), 0)}
	if req.Platform == "" {
		req.Platform = platforms.Format(platforms.DefaultSpec())
	}
	req.Credentials = credentials(r.GetUsername(), r.GetSecret())
	p, proxy, err := s.engine.Plan(stream.Context(), req, func(p wire.Progress) error {
		return stream.Send(&api.PlanResponse{Stage: text(p.Stage), Done: p.Done, Total: p.Total})
	})
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	share := func(s wire.Share) *api.Share {
		return &api.Share{Objects: int64(s.Objects), Bytes: s.Bytes, WireBytes: s.Wire}
	}
	out := &api.Plan{
		Proxy: text(proxy), Manifest: p.Manifest.String(),
		Layers: int64(p.Layers), KnownLayers: int64(p.KnownLayers), StrangeLayers: int64(p.Strange),
		LayerBytes: p.LayerBytes, PlainBytes: p.PlainBytes,
		Total: share(p.Total), Local: share(p.Local), Patched: share(p.Patched), New: share(p.New),
		MetadataBytes: p.Metadata, WireBytes: p.Wire, MostWireBytes: p.MostWire,
	}
	for _, f := range p.Files {
		out.Files = append(out.Files, &api.PlanFile{Path: text("/" + f.Path), Bytes: f.Bytes, WireBytes: f.Wire, Patched: f.Patched})
	}
	return stream.Send(&api.PlanResponse{Plan: out})
}

// credentials of a request; nil: none.
func credentials(username, secret string) *wire.Credentials {
	if username == "" && secret == "" {
		return nil
	}
	return &wire.Credentials{Username: username, Secret: secret}
}
