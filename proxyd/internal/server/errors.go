package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// wireError says how an error is told to a worker. Only texts that were meant
// for the worker leave proxyd: all others may name paths, hosts or queries.
func wireError(err error) *wire.Error {
	var e *wire.Error
	switch {
	case errors.As(err, &e):
		if _, ok := statuses[e.Code]; ok {
			return e
		}
		return &wire.Error{Code: wire.CodeInternal, Message: "internal error"}
	case errors.Is(err, context.DeadlineExceeded):
		return &wire.Error{Code: wire.CodeBusy, Message: "it took too long"}
	case errors.Is(err, context.Canceled):
		return &wire.Error{Code: wire.CodeBusy, Message: "proxyd is shutting down"}
	case errors.Is(err, toc.ErrInvalid):
		return &wire.Error{Code: wire.CodeUnsupported, Message: "the image is malformed"}
	default:
		return &wire.Error{Code: wire.CodeInternal, Message: "internal error"}
	}
}

// statuses of the codes of package wire.
var statuses = map[string]int{
	wire.CodeInvalid:      http.StatusBadRequest,
	wire.CodeUnauthorized: http.StatusUnauthorized,
	wire.CodeDenied:       http.StatusForbidden,
	wire.CodeNotFound:     http.StatusNotFound,
	wire.CodeUnsupported:  http.StatusUnprocessableEntity,
	wire.CodeBusy:         http.StatusServiceUnavailable,
	wire.CodeUpstream:     http.StatusBadGateway,
	wire.CodeInternal:     http.StatusInternalServerError,
}

// writeError answers a request whose response has not begun.
func writeError(w http.ResponseWriter, e *wire.Error) {
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	if e.Code == wire.CodeBusy {
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(statuses[e.Code])
	// Nobody is left to tell that the client is gone.
	_ = json.NewEncoder(w).Encode(e)
}

func invalid(message string) error {
	return &wire.Error{Code: wire.CodeInvalid, Message: message}
}

func busy(message string) error {
	return &wire.Error{Code: wire.CodeBusy, Message: message}
}
