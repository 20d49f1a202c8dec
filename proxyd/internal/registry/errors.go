package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

func unsupported(format string, args ...any) error {
	return &wire.Error{Code: wire.CodeUnsupported, Message: fmt.Sprintf(format, args...)}
}

// wireError turns what the registry, or the way to it, answered into an error
// for the client. Only what cannot hold a secret gets into it: neither queries of
// URLs, which may be signed, nor what a token server says.
func (s *session) wireError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if w := (*wire.Error)(nil); errors.As(err, &w) {
		return w
	}
	w := &wire.Error{Code: wire.CodeUpstream}
	var resp *errcode.ErrorResponse
	var uerr *url.Error
	switch {
	case errors.Is(err, errdef.ErrNotFound):
		w.Code, w.Message = wire.CodeNotFound, "not found"
	case errors.Is(err, errdef.ErrSizeExceedsLimit):
		w.Code, w.Message = wire.CodeUnsupported, "a manifest or config is too large"
	case errors.As(err, &resp):
		w.Code, w.Message = responseCode(resp), responseMessage(resp)
	case errors.Is(err, auth.ErrBasicCredentialNotFound), strings.Contains(err.Error(), missingBasic):
		w.Code, w.Message = wire.CodeUnauthorized, "credentials are required"
	case errors.As(err, &uerr):
		w.Message = redact(uerr.Err.Error())
	default:
		w.Message = redact(err.Error())
	}
	w.Message = "registry " + s.ref.host + ": " + w.Message
	return w
}

// responseCode maps the status of a response.
func responseCode(resp *errcode.ErrorResponse) string {
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return wire.CodeUnauthorized
	case http.StatusBadRequest:
		// Some token servers say so to credentials they do not like.
		if resp.URL != nil && !strings.HasPrefix(resp.URL.Path, "/v2/") {
			return wire.CodeUnauthorized
		}
	case http.StatusNotFound:
		return wire.CodeNotFound
	}
	return wire.CodeUpstream
}

func responseMessage(resp *errcode.ErrorResponse) string {
	msg := fmt.Sprintf("HTTP status %d", resp.StatusCode)
	if len(resp.Errors) > 0 && errorCode.MatchString(resp.Errors[0].Code) {
		msg += " (" + resp.Errors[0].Code + ")"
	}
	return msg
}

// missingBasic is what oras says, without an error to compare with, if a registry
// wants a password and the client has an identity token.
const missingBasic = "missing username or password for basic auth"

var (
	errorCode = regexp.MustCompile(`^[A-Z_]{1,40}$`)
	query     = regexp.MustCompile(`\?[^\s"]*`)
	userinfo  = regexp.MustCompile(`//[^/\s"]*@`)
)

// redact takes the parts out of URLs that can hold secrets.
func redact(s string) string {
	const limit = 500
	s = userinfo.ReplaceAllString(query.ReplaceAllString(s, ""), "//")
	return s[:min(len(s), limit)]
}
