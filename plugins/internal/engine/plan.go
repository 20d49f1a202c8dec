package engine

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// PlanRequest asks what a pull would bring.
type PlanRequest struct {
	Ref      string // fully qualified
	Platform string
	// Credentials of the client, for the registry of Ref and no other.
	Credentials *wire.Credentials
	// From, if not empty, are the references of images: the node is taken to have them
	// and nothing else.
	From []string
	// Top is how many files to name.
	Top int
}

// Plan has a proxy say what a pull would bring, and returns its address too. The proxies
// are asked as by Pull. Nothing changes on the node.
func (e *Engine) Plan(ctx context.Context, r PlanRequest, report func(wire.Progress) error) (*wire.Plan, string, error) {
	_, host, err := splitRef(r.Ref)
	if err != nil {
		return nil, "", err
	}
	req := wire.PlanRequest{
		DeltaRequest: wire.DeltaRequest{Ref: canonical(r.Ref), Platform: r.Platform, Credentials: r.Credentials, Kinds: kinds},
		Top:          min(r.Top, wire.MaxTop),
	}
	for _, ref := range r.From {
		_, other, err := splitRef(ref)
		if err != nil {
			return nil, "", err
		}
		from := wire.From{Ref: canonical(ref)}
		if other == host {
			from.Credentials = r.Credentials
		}
		req.From = append(req.From, from)
	}
	if len(r.From) == 0 {
		req.Have, req.Partial = e.inventory(), e.partials()
	}
	proxies := e.proxiesFor(host)
	if len(proxies) == 0 {
		return nil, "", noProxy(host)
	}
	var failures []error
	for _, p := range proxies {
		plan, err := p.client.Plan(ctx, req, report)
		if err == nil {
			return plan, p.Address, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil || errdefs.IsUnauthorized(err) || errdefs.IsNotFound(err) {
			break // is what the registry says: other proxies would say the same
		}
	}
	return nil, "", errors.Join(failures...)
}
