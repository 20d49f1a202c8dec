// Package fsblob keeps blobs as files of a directory.
package fsblob

import (
	"errors"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
)

// New opens the store in dir, which is created if it is not there.
func New(dir string) (blob.Store, error) {
	return nil, errors.New("under construction")
}
