package server

import (
	"context"
	"net/http"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// objects answers a wire.ObjectsRequest.
func (s *Server) objects(w *response, r *http.Request, rec *record) error {
	var req wire.ObjectsRequest
	if err := s.decode(w, r, &req); err != nil {
		return err
	}
	rec.ref, rec.platform = req.Ref, req.Platform
	ctx := r.Context()
	im, st, err := s.known(ctx, &req)
	if err != nil {
		return err
	}
	defer s.hold(im, nil)()
	rec.digest, rec.objects = im.manifest, len(req.Objects)
	if err := delta.CheckAsked(im.delta, req.Objects); err != nil {
		return invalid(err.Error())
	}
	var claims *delta.Claims
	asked := req.Objects
	if st != nil {
		// The stream has the bandwidth, so what it can bring it brings, next.
		claims = st.claims
		asked = claims.Urge(asked, req.Exact)
	}
	w.Header().Set("Content-Type", wire.BundleType)
	w.Header().Set("Cache-Control", "no-store")
	packs := s.library.packSet(im.packKeys())
	defer packs.close()
	out := wire.NewWriter(w)
	err = delta.Answer(ctx, out, im.delta, asked, req.Exact, packs.pack, claims)
	if err == nil {
		err = out.End()
	}
	s.cfg.Metrics.bundleBytes.Add(float64(out.Written()))
	if err != nil {
		if st != nil {
			st.failed.Store(true)
		}
		if w.began() && ctx.Err() == nil {
			// If this fails too, the bundle is truncated, which says the same.
			_ = out.Error(wireError(err))
		}
		return err
	}
	s.cfg.Metrics.bundleObjects.Add(float64(len(req.Objects)))
	return nil
}

// known finds the image of a request for objects: by its stream, which only
// those know who were given the image, or by asking the registry.
func (s *Server) known(ctx context.Context, req *wire.ObjectsRequest) (*image, *stream, error) {
	if st := s.streams.find(req.Stream, req.Ref); st != nil {
		return st.img, st, nil
	}
	platform, err := parsePlatform(req.Platform)
	if err != nil {
		return nil, nil, err
	}
	img, err := s.image(ctx, req.Ref, platform, req.Credentials, req.Ticket)
	if err != nil {
		return nil, nil, err
	}
	layers, err := s.cfg.Ingester.Ready(ctx, img)
	if err != nil {
		return nil, nil, err
	}
	if layers == nil {
		return nil, nil, busy("the image is not ingested; ask for it as a whole first")
	}
	im, err := s.library.image(ctx, img, layers)
	return im, nil, err
}
