package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
)

// own copies the user's images to the registry behind the link.
func (d *demo) own(ctx context.Context, w *sandbox.World) ([]version, error) {
	refs := []string{d.image}
	if d.update != "" {
		refs = append(refs, d.update)
	}
	var all []version
	for i, ref := range refs {
		say("copying %s to the registry behind the link", ref)
		v, err := d.fetch(ctx, w, ref)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		v.what = whats[i]
		all = append(all, v)
	}
	return all, nil
}

func (d *demo) fetch(ctx context.Context, w *sandbox.World, ref string) (version, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return version{}, err
	}
	src, err := remote.NewRepository(named.Name())
	if err != nil {
		return version{}, err
	}
	host, _, _ := strings.Cut(src.Reference.Registry, ":")
	src.PlainHTTP = host == "localhost" || host == "127.0.0.1"
	c := &auth.Client{Client: retry.DefaultClient, Cache: auth.NewCache()}
	if store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{}); err == nil { // else anonymous
		c.Credential = credentials.Credential(store)
	}
	src.Client = c

	name, tag, from := reference.Path(named), "latest", ""
	switch n := named.(type) {
	case reference.Digested:
		from = n.Digest().String()
		tag = n.Digest().Encoded()[:12]
	case reference.Tagged:
		tag = n.Tag()
		from = tag
	}
	dst, err := w.Registry.Repository(name)
	if err != nil {
		return version{}, err
	}
	opts := oras.DefaultCopyOptions
	opts.WithTargetPlatform(&ocispec.Platform{OS: "linux", Architecture: "amd64"})
	desc, err := oras.Copy(ctx, src, from, dst, tag, opts)
	if err != nil {
		return version{}, err
	}
	v := version{ref: w.Registry.Ref(name, tag)}
	if d.ready != "" {
		v.ready, err = parseReady(d.ready)
		return v, err
	}
	var m ocispec.Manifest
	if err := fetchJSON(ctx, dst, desc.Digest.String(), &m); err != nil {
		return v, err
	}
	b, err := dst.Blobs().Fetch(ctx, m.Config)
	if err != nil {
		return v, err
	}
	defer b.Close()
	var conf ocispec.Image
	if err := json.NewDecoder(b).Decode(&conf); err != nil {
		return v, err
	}
	v.ready = guessReady(conf)
	return v, nil
}

func fetchJSON(ctx context.Context, from oras.Target, ref string, v any) error {
	_, b, err := oras.FetchBytes(ctx, from, ref, oras.DefaultFetchBytesOptions)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// guessReady takes the first port that the image exposes, or its first output.
func guessReady(conf ocispec.Image) corpus.Ready {
	best := 0
	for p := range conf.Config.ExposedPorts {
		number, proto, _ := strings.Cut(p, "/")
		n, err := strconv.Atoi(number)
		if err == nil && (proto == "" || proto == "tcp") && (best == 0 || n < best) {
			best = n
		}
	}
	if best != 0 {
		return corpus.Ready{Kind: "tcp", Port: best, Timeout: 600}
	}
	return corpus.Ready{Kind: "log", Pattern: ".", Timeout: 600}
}

func parseReady(s string) (corpus.Ready, error) {
	r := corpus.Ready{Timeout: 600}
	kind, rest, _ := strings.Cut(s, ":")
	r.Kind = kind
	var err error
	switch kind {
	case "exit":
	case "log":
		r.Pattern = rest
	case "tcp":
		r.Port, err = strconv.Atoi(rest)
	case "http":
		port, path, _ := strings.Cut(rest, "/")
		r.Path = "/" + path
		r.Port, err = strconv.Atoi(port)
	default:
		err = fmt.Errorf("unknown kind of ready check %q", kind)
	}
	return r, err
}
