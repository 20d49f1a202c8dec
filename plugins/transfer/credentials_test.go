package transfer

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// helper is what CRI gives to a transfer in process.
type helper struct {
	ref    string
	answer func(host string) (registry.Credentials, error)
	asked  atomic.Int32
}

func (h *helper) GetCredentials(_ context.Context, ref, host string) (registry.Credentials, error) {
	h.asked.Add(1)
	if ref != h.ref {
		return registry.Credentials{}, errors.New("wrong reference")
	}
	return h.answer(host)
}

func TestCredentials(t *testing.T) {
	const ref = "registry.example.com/a/b:tag"
	failed := errors.New("no such thing")
	for name, tc := range map[string]struct {
		answer  registry.Credentials
		err     error
		want    *wire.Credentials
		wantErr bool
	}{
		"password": {answer: registry.Credentials{Username: "u", Secret: "s"}, want: &wire.Credentials{Username: "u", Secret: "s"}},
		"token":    {answer: registry.Credentials{Secret: "t"}, want: &wire.Credentials{Secret: "t"}},
		"nothing":  {},
		"header":   {answer: registry.Credentials{Header: "Bearer x"}},
		"failure":  {err: failed, wantErr: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := &helper{ref: ref, answer: func(string) (registry.Credentials, error) { return tc.answer, tc.err }}
			src, err := registry.NewOCIRegistry(t.Context(), ref, registry.WithCredentials(h))
			if err != nil {
				t.Fatal(err)
			}
			c := newCredentials(t.Context(), src)
			defer c.close()
			for range 2 {
				got, err := c.get(t.Context(), "registry.example.com")
				if (err != nil) != tc.wantErr {
					t.Fatalf("got %v, want error %v", err, tc.wantErr)
				}
				if d := cmp.Diff(tc.want, got); d != "" {
					t.Error(d)
				}
			}
			if n := h.asked.Load(); n != 1 && !tc.wantErr {
				t.Errorf("asked %d times, want once", n)
			}
		})
	}
}

func TestCredentialsHost(t *testing.T) {
	const ref = "docker.io/library/busybox:latest"
	h := &helper{ref: ref, answer: func(host string) (registry.Credentials, error) {
		return registry.Credentials{Username: host, Secret: "s"}, nil
	}}
	src, err := registry.NewOCIRegistry(t.Context(), ref, registry.WithCredentials(h))
	if err != nil {
		t.Fatal(err)
	}
	c := newCredentials(t.Context(), src)
	got, err := c.get(t.Context(), "docker.io")
	if err != nil || got.Username != "registry-1.docker.io" {
		t.Errorf("got %v, %v", got, err)
	}
	c.close()
	if _, err := c.get(t.Context(), "other.example.com"); err == nil {
		t.Error("no error after the transfer")
	}
	// What is known stays known: the stream may ask again.
	if got, err := c.get(t.Context(), "docker.io"); err != nil || got == nil {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestCredentialsOfAnonymous(t *testing.T) {
	src, err := registry.NewOCIRegistry(t.Context(), "registry.example.com/a:b")
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]namedFetcher{"registry": src, "no registry": bareFetcher{}} {
		c := newCredentials(t.Context(), f)
		defer c.close()
		if got, err := c.get(t.Context(), "registry.example.com"); got != nil || err != nil {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

func TestCredentialsHeedContext(t *testing.T) {
	block := make(chan struct{})
	defer close(block)
	h := &helper{ref: "registry.example.com/a:b", answer: func(string) (registry.Credentials, error) {
		<-block
		return registry.Credentials{}, nil
	}}
	src, err := registry.NewOCIRegistry(t.Context(), h.ref, registry.WithCredentials(h))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := newCredentials(ctx, src)
	defer c.close()
	cancel()
	if _, err := c.get(ctx, "registry.example.com"); err == nil {
		t.Error("no error")
	}
}

// bareFetcher is a source that cannot hand over credentials.
type bareFetcher struct{}

func (bareFetcher) Image() string { return "registry.example.com/a:b" }

func (bareFetcher) Resolve(context.Context) (string, ocispec.Descriptor, error) {
	return "", ocispec.Descriptor{}, errors.New("not reached")
}

func (bareFetcher) Fetcher(context.Context, string) (transfer.Fetcher, error) {
	return nil, errors.New("not reached")
}
