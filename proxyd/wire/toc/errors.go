package toc

import "errors"

// ErrInvalid is wrapped by every error about malformed or hostile input.
var ErrInvalid = errors.New("invalid")
