package server

import (
	"context"
	"errors"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/internal/meta"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// patching is what the patches of one bundle need.
type patching struct {
	*delta.Patcher
	layers []toc.Digest // bases, as in the header
	packs  *packSet
}

// patching finds what the patches of a plan can be made against. It returns nil if the
// worker takes none, or has nothing alike.
func (s *Server) patching(ctx context.Context, im *image, plan *delta.Plan, req *wire.DeltaRequest) (*patching, error) {
	if !req.Kinds.Has(wire.PatchKinds) || len(plan.Items) == 0 || len(req.Have) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Limits.Plan)
	defer cancel()
	had := make([]delta.Had, 0, len(req.Have))
	keys := make(map[toc.Digest]string, len(req.Have))
	for _, h := range req.Have {
		ly, err := s.library.have(ctx, h.DiffID)
		if errors.Is(err, meta.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		had = append(had, delta.Had{DiffID: h.DiffID, Names: ly.names, Missing: h.Missing, Coming: h.Coming})
		keys[h.DiffID] = ly.rec.PackKey
	}
	bases := delta.FindBases(im.delta, plan, had)
	if len(bases.Layers) == 0 {
		return nil, nil
	}
	p := &patching{}
	var open []string
	for _, l := range bases.Layers {
		p.layers = append(p.layers, l.DiffID)
		open = append(open, keys[l.DiffID])
	}
	p.packs = s.library.packSet(open)
	p.Patcher = &delta.Patcher{Encoder: s.encoder, Bases: bases, Packs: p.packs.pack}
	p.Rate, p.Known = linkRate(ctx)
	return p, nil
}

// patcher is nil if p is.
func (p *patching) patcher() *delta.Patcher {
	if p == nil {
		return nil
	}
	return p.Patcher
}

// bases are the layers that the patches refer to.
func (p *patching) bases() []toc.Digest {
	if p == nil {
		return nil
	}
	return p.layers
}

func (p *patching) close() {
	if p != nil {
		p.packs.close()
	}
}
