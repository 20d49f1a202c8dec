package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// packet is the size up to which compressing a request saves nothing.
const packet = 1200

// EncodingZstd is the Content-Encoding of compressed requests.
const EncodingZstd = "zstd"

// EncodeRequest returns the body of a request and its Content-Encoding, which is
// "" or [EncodingZstd].
func EncodeRequest(req any) (body []byte, encoding string, err error) {
	body, err = json.Marshal(req)
	if err != nil {
		return nil, "", fmt.Errorf("encode request: %w", err)
	}
	if len(body) > MaxRequest {
		return nil, "", fmt.Errorf("request of %d bytes: %w", len(body), toc.ErrInvalid)
	}
	if len(body) > packet {
		if z, ok := Compress(nil, body); ok {
			return z, EncodingZstd, nil
		}
	}
	return body, "", nil
}

// DecodeRequest reads a request of the given Content-Encoding into req, which
// points to a request type of this package, and validates it. Unknown fields are
// ignored; whatever else is wrong gives an error that wraps [toc.ErrInvalid], and
// errors of body are returned wrapped.
func DecodeRequest(body io.Reader, encoding string, req any) error {
	raw, err := io.ReadAll(io.LimitReader(body, MaxRequest+1))
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	if len(raw) > MaxRequest {
		return fmt.Errorf("request of more than %d bytes: %w", MaxRequest, toc.ErrInvalid)
	}
	switch encoding {
	case "", "identity":
	case EncodingZstd:
		if raw, err = decompressLimit(nil, raw, MaxRequest); err != nil {
			return fmt.Errorf("request: %w", err)
		}
	default:
		return fmt.Errorf("request has the content encoding %q: %w", encoding, toc.ErrInvalid)
	}
	if err := unmarshal(raw, req); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	if v, ok := req.(interface{ Validate() error }); ok {
		return v.Validate()
	}
	return nil
}

// Validate checks the limits and what every handler relies on.
func (r *DeltaRequest) Validate() error {
	switch {
	case r.Ref == "":
		return fmt.Errorf("request without ref: %w", toc.ErrInvalid)
	case len(r.Partial) > MaxPartial:
		return fmt.Errorf("request names %d objects in part, at most %d are allowed: %w", len(r.Partial), MaxPartial, toc.ErrInvalid)
	case len(r.Worker) > maxWorker:
		return fmt.Errorf("name of the worker of %d bytes: %w", len(r.Worker), toc.ErrInvalid)
	case len(r.Request) > maxWorker || len(r.After) > MaxAfter:
		return fmt.Errorf("name of the request of %d bytes, after %d others: %w", len(r.Request), len(r.After), toc.ErrInvalid)
	case len(r.Have) > MaxHave:
		return fmt.Errorf("request names %d layers, at most %d are allowed: %w", len(r.Have), MaxHave, toc.ErrInvalid)
	}
	return nil
}

// Validate checks the limits and what every handler relies on.
func (r *ObjectsRequest) Validate() error {
	switch {
	case r.Ref == "":
		return fmt.Errorf("request without ref: %w", toc.ErrInvalid)
	case len(r.Objects) == 0:
		return fmt.Errorf("request asks for no objects: %w", toc.ErrInvalid)
	case len(r.Objects) > MaxAsk:
		return fmt.Errorf("request asks for %d objects, at most %d are allowed: %w", len(r.Objects), MaxAsk, toc.ErrInvalid)
	}
	return nil
}

// Validate checks what every handler relies on.
func (r *BlobRequest) Validate() error {
	if r.Ref == "" || r.Digest.IsZero() || r.Size < 0 {
		return fmt.Errorf("request needs ref, digest and size: %w", toc.ErrInvalid)
	}
	return nil
}

// unmarshal decodes exactly one JSON value.
func unmarshal(raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		if !errors.Is(err, toc.ErrInvalid) {
			err = fmt.Errorf("%w: %w", err, toc.ErrInvalid)
		}
		return err
	}
	if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return fmt.Errorf("null: %w", toc.ErrInvalid)
	}
	return nil
}
