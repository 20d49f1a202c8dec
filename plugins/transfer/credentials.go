package transfer

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/containerd/v2/core/streaming"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// marshaler is a source that can hand itself to another process, and its
// credentials with it: on a stream on which it answers who asks. That is how ours
// gets at what ctr, nerdctl and CRI give to the transfer, without knowing how.
type marshaler interface {
	MarshalAny(ctx context.Context, creator streaming.StreamCreator) (typeurl.Any, error)
}

// credentials asks a source for credentials. Answers live as long as the transfer.
type credentials struct {
	ref    string
	src    any
	cancel context.CancelFunc
	ctx    context.Context //nolint:containedctx // of the one transfer that this value belongs to

	mu     sync.Mutex // held while the source is asked; guards the following
	stream *authStream
	none   bool // the source has no credentials
	known  map[string]*wire.Credentials
}

func newCredentials(ctx context.Context, src namedFetcher) *credentials {
	c := &credentials{ref: src.Image(), src: src, known: map[string]*wire.Credentials{}}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c
}

// close ends the stream, and with it the goroutine of the source.
func (c *credentials) close() { c.cancel() }

// get returns the credentials for a registry, or nil if the client has none.
func (c *credentials) get(ctx context.Context, host string) (*wire.Credentials, error) {
	// As the resolver asks for the hub: helpers keep its credentials under this name.
	if host == "docker.io" {
		host = "registry-1.docker.io"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.known[host]; ok {
		return known, nil
	}
	if err := c.open(); err != nil || c.none {
		return nil, err
	}
	got, err := c.stream.ask(ctx, &transfertypes.AuthRequest{Host: host, Reference: c.ref})
	if err != nil {
		return nil, fmt.Errorf("ask the client for credentials for %s: %w", host, err)
	}
	c.known[host] = got
	return got, nil
}

// open gets the stream from the source.
func (c *credentials) open() error {
	if c.stream != nil || c.none {
		return nil
	}
	m, ok := c.src.(marshaler)
	if !ok {
		c.none = true
		return nil
	}
	var creator authCreator
	creator.done = c.ctx.Done()
	_, err := m.MarshalAny(c.ctx, &creator)
	if creator.stream == nil {
		c.none = err == nil
		return err
	}
	// What failed after the stream was there does not matter here: debug streams.
	c.stream = creator.stream
	return nil
}

// authCreator takes the one stream that carries credentials.
type authCreator struct {
	done   <-chan struct{}
	stream *authStream
}

// Create implements streaming.StreamCreator.
func (a *authCreator) Create(_ context.Context, id string) (streaming.Stream, error) {
	if a.stream != nil || !strings.HasPrefix(id, "creds") {
		return nil, fmt.Errorf("stream %q: %w", id, errdefs.ErrNotImplemented)
	}
	a.stream = &authStream{requests: make(chan authRequest), done: a.done}
	return a.stream, nil
}

type authRequest struct {
	any   typeurl.Any
	reply chan typeurl.Any // capacity 1; closed if there is no answer
}

// authStream is a streaming.Stream of requests for credentials, in memory.
type authStream struct {
	requests chan authRequest
	done     <-chan struct{}

	asked *authRequest // not answered yet; used by the goroutine of the source only
}

var _ streaming.Stream = (*authStream)(nil)

// Recv gives the source the next request. That it wants another one before it has
// answered the last is its only way to say that it cannot.
func (s *authStream) Recv() (typeurl.Any, error) {
	if s.asked != nil {
		close(s.asked.reply)
		s.asked = nil
	}
	select {
	case r := <-s.requests:
		s.asked = &r
		return r.any, nil
	case <-s.done:
		return nil, io.EOF
	}
}

// Send takes an answer of the source.
func (s *authStream) Send(a typeurl.Any) error {
	if s.asked == nil {
		return fmt.Errorf("an answer without a question: %w", errdefs.ErrFailedPrecondition)
	}
	s.asked.reply <- a
	s.asked = nil
	return nil
}

// Close implements streaming.Stream. The stream ends with the transfer.
func (s *authStream) Close() error { return nil }

func (s *authStream) ask(ctx context.Context, r *transfertypes.AuthRequest) (*wire.Credentials, error) {
	a, err := typeurl.MarshalAny(r)
	if err != nil {
		return nil, err
	}
	request := authRequest{any: a, reply: make(chan typeurl.Any, 1)}
	closed := fmt.Errorf("the client has gone: %w", errdefs.ErrUnavailable)
	select {
	case s.requests <- request:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.done:
		return nil, closed
	}
	var reply typeurl.Any
	select {
	case answer, ok := <-request.reply:
		if !ok {
			return nil, fmt.Errorf("its helper failed: %w", errdefs.ErrUnavailable)
		}
		reply = answer
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.done:
		return nil, closed
	}
	var response transfertypes.AuthResponse
	if err := typeurl.UnmarshalTo(reply, &response); err != nil {
		return nil, err
	}
	return fromResponse(&response), nil
}

// fromResponse returns nil where there is nothing that a proxy could use.
func fromResponse(r *transfertypes.AuthResponse) *wire.Credentials {
	switch {
	case r.AuthType == transfertypes.AuthType_CREDENTIALS && r.Username != "":
		return &wire.Credentials{Username: r.Username, Secret: r.Secret}
	case r.AuthType == transfertypes.AuthType_REFRESH && r.Secret != "":
		return &wire.Credentials{Secret: r.Secret}
	}
	return nil
}
