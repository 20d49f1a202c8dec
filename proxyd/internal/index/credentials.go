package index

import (
	"context"
	"fmt"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// FromFile gives the credentials in a file as of docker login, which is read each
// time: what is renewed there counts at once, and nothing is kept.
func FromFile(name string) func(context.Context, string) (*wire.Credentials, error) {
	return func(ctx context.Context, host string) (*wire.Credentials, error) {
		store, err := credentials.NewFileStore(name)
		if err != nil {
			return nil, fmt.Errorf("auth_file: %w", err)
		}
		c, err := store.Get(ctx, credentials.ServerAddressFromRegistry(host))
		switch {
		case err != nil:
			return nil, fmt.Errorf("auth_file: %w", err)
		case c == auth.EmptyCredential:
			return nil, nil //nolint:nilnil // nobody
		case c.RefreshToken != "":
			return &wire.Credentials{Secret: c.RefreshToken}, nil
		default:
			return &wire.Credentials{Username: c.Username, Secret: c.Password}, nil
		}
	}
}
