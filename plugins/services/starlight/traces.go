package starlight

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
	"github.com/starlight-delta/starlight/plugins/internal/engine"
	"github.com/starlight-delta/starlight/plugins/internal/trace"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Tracer is an Engine that traces starts of containers.
type Tracer interface {
	Optimizer() engine.Optimizer
	Optimize(o engine.Optimizer) error
	Traces() ([]*trace.Trace, error)
	TracePaths(t *trace.Trace) map[toc.Digest]string
	TracedBy(t *trace.Trace, name string) bool
	Report(ctx context.Context) (int, error)
}

var _ Tracer = (*engine.Engine)(nil)

// shown objects are in one message, which may have 4 MiB.
const shown = 512

// traces implements api.TracesServer.
type traces struct {
	api.UnimplementedTracesServer
	engine Tracer
}

// Optimizer implements api.TracesServer.
func (s *traces) Optimizer(_ context.Context, r *api.OptimizerRequest) (*api.OptimizerResponse, error) {
	if set := r.GetSet(); set != nil {
		if err := s.engine.Optimize(engine.Optimizer{
			On: set.GetOn(), Group: set.GetGroup(), Images: set.GetImages(), Window: set.GetWindow().AsDuration(), Report: set.GetReport(),
		}); err != nil {
			return nil, errgrpc.ToGRPC(err)
		}
	}
	o := s.engine.Optimizer()
	if o.Window == 0 {
		o.Window = engine.DefaultWindow
	}
	return &api.OptimizerResponse{Optimizer: &api.Optimizer{
		On: o.On, Group: text(o.Group), Images: o.Images, Window: durationpb.New(o.Window), Report: o.Report,
	}}, nil
}

// List implements api.TracesServer.
func (s *traces) List(_ context.Context, r *api.ListTracesRequest) (*api.ListTracesResponse, error) {
	all, err := s.engine.Traces()
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	resp := &api.ListTracesResponse{}
	for _, t := range all {
		if r.GetImage() == "" || s.engine.TracedBy(t, r.GetImage()) {
			resp.Traces = append(resp.Traces, traceOf(t))
		}
	}
	return resp, nil
}

// Show implements api.TracesServer.
func (s *traces) Show(r *api.ShowTraceRequest, stream grpc.ServerStreamingServer[api.ShowTraceResponse]) error {
	all, err := s.engine.Traces()
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	var found *trace.Trace
	for _, t := range slices.Backward(all) { // the newest first
		if r.GetTrace() == t.ID || s.engine.TracedBy(t, r.GetTrace()) {
			found = t
			break
		}
	}
	if found == nil {
		return errgrpc.ToGRPC(fmt.Errorf("no trace of %q is waiting to be reported: %w", r.GetTrace(), errdefs.ErrNotFound))
	}
	if err := stream.Send(&api.ShowTraceResponse{Trace: traceOf(found)}); err != nil {
		return err
	}
	paths := s.engine.TracePaths(found)
	for batch := range slices.Chunk(found.Objects, shown) {
		resp := &api.ShowTraceResponse{}
		for i := range batch {
			o := &batch[i]
			out := &api.TracedObject{
				Digest: o.Digest.String(), Path: text(paths[o.Digest]), Size: o.Size,
				After: durationpb.New(o.After), Waited: durationpb.New(o.Wait),
			}
			for _, r := range o.Ranges {
				out.Ranges = append(out.Ranges, &api.TracedRange{Offset: r.Off, Length: r.N})
			}
			resp.Objects = append(resp.Objects, out)
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
	return nil
}

// Report implements api.TracesServer.
func (s *traces) Report(ctx context.Context, _ *api.ReportRequest) (*api.ReportResponse, error) {
	n, err := s.engine.Report(ctx)
	resp := &api.ReportResponse{Accepted: int32(n)}
	if err != nil {
		resp.Reason = text(err.Error())
	}
	return resp, nil
}

func traceOf(t *trace.Trace) *api.Trace {
	objects, bytes := t.Read()
	return &api.Trace{
		Id: t.ID, Image: text(t.Name + "@" + t.Image.String()), Platform: text(t.Platform), Group: text(t.Group), Partial: t.Partial,
		Started: timestamppb.New(t.Started), Duration: durationpb.New(t.Duration),
		Objects: int64(objects), Bytes: bytes, Waited: durationpb.New(t.Wait()),
	}
}
