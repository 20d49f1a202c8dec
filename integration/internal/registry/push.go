package registry

import (
	"context"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// Push copies tag of an OCI image layout to name:tag, and returns the digest of
// what it names.
func (r *Registry) Push(ctx context.Context, layout, name, tag string) (digest.Digest, error) {
	src, err := oci.NewFromFS(ctx, os.DirFS(layout))
	if err != nil {
		return "", fmt.Errorf("open layout %s: %w", layout, err)
	}
	repo, err := r.Repository(name)
	if err != nil {
		return "", err
	}
	desc, err := oras.Copy(ctx, src, tag, repo, tag, oras.DefaultCopyOptions)
	if err != nil {
		return "", fmt.Errorf("push %s: %w", r.Ref(name, tag), err)
	}
	return desc.Digest, nil
}

// Repository is a client of a repository of this registry, from the registry's own
// side of the link and with the right credentials.
func (r *Registry) Repository(name string) (*remote.Repository, error) {
	repo, err := remote.NewRepository(r.Host + "/" + name)
	if err != nil {
		return nil, err
	}
	repo.PlainHTTP = true
	c := &auth.Client{Client: r.client, Cache: auth.NewCache()}
	if r.auth != Open {
		c.Credential = auth.StaticCredential(r.Host, auth.Credential{Username: User, Password: Password})
	}
	repo.Client = c
	return repo, nil
}

// Manifest reads a manifest or an index by reference, which is a tag or a digest.
func (r *Registry) Manifest(ctx context.Context, name, reference string) (ocispec.Descriptor, []byte, error) {
	repo, err := r.Repository(name)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return oras.FetchBytes(ctx, repo, reference, oras.DefaultFetchBytesOptions)
}
