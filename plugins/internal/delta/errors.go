package delta

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

var (
	// ErrProtocol is wrapped when the other side is no proxyd of our protocol
	// version: too old, too new, or something else entirely.
	ErrProtocol = fmt.Errorf("not a proxyd that speaks protocol version %d (too old?): %w", wire.Version, errdefs.ErrNotImplemented)
	// ErrStalled is wrapped when an expected answer did not come, or stopped.
	ErrStalled = fmt.Errorf("stalled: %w", errdefs.ErrUnavailable)
	// ErrRetry is returned by ReadHeader when the proxyd has just become ready for
	// the image: ask again, with a fresh inventory, at once.
	ErrRetry = errors.New("proxyd is ready now: ask again")
)

// connError is the loss or refusal of a connection.
type connError struct {
	addr string
	err  error
}

func (e *connError) Error() string   { return "proxy " + e.addr + ": " + e.err.Error() }
func (e *connError) Unwrap() []error { return []error{e.err, errdefs.ErrUnavailable} }

// refusedError is what a proxyd says against a request.
type refusedError struct {
	addr string
	err  *wire.Error
}

func (e *refusedError) Error() string   { return "proxy " + e.addr + ": " + e.err.Error() }
func (e *refusedError) Unwrap() []error { return []error{e.err, class(e.err.Code)} }

// class translates a code of the wire to a class of containerd's errors. It is the
// only place that does.
func class(code string) error {
	switch code {
	case wire.CodeInvalid:
		return errdefs.ErrInvalidArgument
	case wire.CodeUnauthorized:
		return errdefs.ErrUnauthenticated
	case wire.CodeDenied:
		return errdefs.ErrPermissionDenied
	case wire.CodeNotFound:
		return errdefs.ErrNotFound
	case wire.CodeUnsupported:
		return errdefs.ErrNotImplemented
	case wire.CodeBusy:
		return errdefs.ErrResourceExhausted
	case wire.CodeUpstream:
		return errdefs.ErrUnavailable
	case wire.CodeInternal:
		return errdefs.ErrInternal
	default:
		return errdefs.ErrUnknown
	}
}

// Retryable tells whether the same request, made later, may succeed.
func Retryable(err error) bool {
	var refused *wire.Error
	var cert *tls.CertificateVerificationError
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.Is(err, ErrRetry):
		return true
	case errors.As(err, &refused):
		return refused.Code == wire.CodeBusy || refused.Code == wire.CodeUpstream || refused.Code == wire.CodeInternal
	case errors.Is(err, ErrProtocol), errors.As(err, &cert), errors.Is(err, toc.ErrInvalid):
		return false
	case errors.Is(err, ErrStalled), errors.Is(err, wire.ErrTruncated), errors.Is(err, io.ErrUnexpectedEOF):
		return true
	default:
		var lost *connError
		return errors.As(err, &lost)
	}
}

// maxRefusal caps the body of a response that is not 200.
const maxRefusal = 64 << 10

// refusal reads a response that is not 200. One without a wire.Error in it comes
// from something in front of proxyd, or from a proxyd that lacks the route.
func (c *Client) refusal(route string, resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	if err != nil {
		return err
	}
	var e wire.Error
	if json.Unmarshal(b, &e) == nil && e.Code != "" {
		return &refusedError{c.cfg.Address, &wire.Error{Code: clean(e.Code), Message: clean(e.Message)}}
	}
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests:
		return &connError{c.cfg.Address, fmt.Errorf("%s: %s", route, resp.Status)}
	default:
		return fmt.Errorf("proxy %s: %s: %s: %w", c.cfg.Address, route, clean(resp.Status), ErrProtocol)
	}
}

// clean makes text from the network fit for logs and terminals.
func clean(s string) string {
	const most = 1 << 10
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
}
