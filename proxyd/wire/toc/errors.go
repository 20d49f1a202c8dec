package toc

import (
	"errors"
	"fmt"
)

// ErrInvalid is wrapped by every error about malformed or hostile input.
var ErrInvalid = errors.New("invalid")

// ErrVersion is wrapped, beside ErrInvalid, by the error about a TOC of another version.
var ErrVersion = fmt.Errorf("version is not known: %w", ErrInvalid)
