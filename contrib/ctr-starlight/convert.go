package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/errcode"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/starlight-delta/starlight/contrib/ctr-starlight/internal/convert"
	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

const allPlatforms = "all"

func convertCommand() *cli.Command {
	return &cli.Command{
		Name:      "convert",
		Usage:     "copy an image between registries and make it eStargz or zstd:chunked",
		ArgsUsage: "SRC DST",
		Description: "Starlight needs no converted images; others that pull lazily do. The result runs everywhere, as its layers are\n" +
			"gzip or zstd to whoever does not know better. Its manifest names Starlight's own tables of contents, too:\n" +
			"nodes need not believe a proxy which files such an image has. Its digests are new: signatures do not follow.\n" +
			"Needs no containerd, but for --notify, and room in $TMPDIR for the largest layer, four times.\n" +
			"Passwords are those of docker login; --user is for the registry of DST, and of SRC if that is the same.\n" +
			"It is best given in the environment: CTR_STARLIGHT_USER=user:password",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Value: string(convert.EStargz), Usage: "estargz or zstdchunked"},
			&cli.StringFlag{Name: "platform", Value: allPlatforms, Usage: "os/arch[/variant] to convert, or all"},
			&cli.BoolFlag{Name: "insecure-source", Usage: "speak HTTP, or TLS with any certificate, to the registry of SRC"},
			&cli.BoolFlag{Name: "insecure-destination", Usage: "the same for DST"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "user:password for the registry", Sources: cli.EnvVars("CTR_STARLIGHT_USER")},
			&cli.BoolFlag{Name: "notify", Usage: "have the proxies of this node's containerd index DST, as notify does"},
			jsonFlag("a JSON object"),
		},
		Action:        convertImage,
		ShellComplete: completeRefs,
	}
}

// convertJSON is the output of --json: fields may be added, and never change.
type convertJSON struct {
	Ref       string            `json:"ref"`
	Digest    string            `json:"digest"`
	MediaType string            `json:"mediaType"`
	Manifests []convertManifest `json:"manifests"`
	Dropped   int               `json:"dropped"`  // manifests that are no images
	Notified  []string          `json:"notified"` // proxies
}

type convertManifest struct {
	Platform string `json:"platform"`
	Digest   string `json:"digest"`
}

func convertImage(ctx context.Context, c *cli.Command) error {
	if err := arguments(c, 2, 2); err != nil {
		return err
	}
	ctx, cancel := timeout(ctx, c)
	defer cancel()
	o := convert.Options{Format: convert.Format(c.String("format"))}
	if o.Format != convert.EStargz && o.Format != convert.ZstdChunked {
		return fmt.Errorf("--format %q is neither %s nor %s", o.Format, convert.EStargz, convert.ZstdChunked)
	}
	if p := c.String("platform"); p != allPlatforms {
		want, err := platforms.Parse(p)
		if err != nil {
			return fmt.Errorf("--platform: %w", err)
		}
		o.Platforms = platforms.Only(want)
	}
	if !c.Bool("json") {
		o.Layer = func(from, to ocispec.Descriptor) {
			_, _ = fmt.Fprintf(c.Root().ErrWriter, "%s (%s) is %s (%s)\n", from.Digest, size(from.Size), to.Digest, size(to.Size))
		}
	}
	src, err := parseImage(c.Args().Get(0))
	if err != nil {
		return err
	}
	dst, err := parseImage(c.Args().Get(1))
	if err != nil {
		return err
	}
	if dst.tag == "" {
		return fmt.Errorf("%s has no tag: the digest is only known afterwards", c.Args().Get(1))
	}
	source, err := openRepository(ctx, src, c.Bool("insecure-source"), userFor(c, src.host == dst.host))
	if err != nil {
		return fmt.Errorf("registry of %s: %w", src, err)
	}
	target, err := openRepository(ctx, dst, c.Bool("insecure-destination"), c.String("user"))
	if err != nil {
		return fmt.Errorf("registry of %s: %w", dst, err)
	}
	r, err := convert.Image(ctx, source, src.object(), target, dst.tag, o)
	if err != nil {
		if cause := context.Cause(ctx); ctx.Err() != nil {
			return cause
		}
		return fmt.Errorf("convert %s: %w%s", src, err, advice(err))
	}
	out := convertJSON{Ref: dst.String(), Digest: r.Digest.String(), MediaType: r.MediaType, Dropped: len(r.Dropped), Notified: []string{}}
	for _, m := range r.Manifests {
		cm := convertManifest{Digest: m.Digest.String()}
		if m.Platform != nil {
			cm.Platform = platforms.Format(*m.Platform)
		}
		out.Manifests = append(out.Manifests, cm)
	}
	if c.Bool("notify") {
		if out.Notified, err = notifyConverted(ctx, c, dst, target); err != nil {
			return fmt.Errorf("%s@%s is pushed, but not indexed: %w", dst, r.Digest, err)
		}
	}
	return out.write(c)
}

func (o *convertJSON) write(c *cli.Command) error {
	if c.Bool("json") {
		return writeJSON(c.Root().Writer, o)
	}
	lines := []string{fmt.Sprintf("%s is %s, %d images", o.Ref, o.Digest, len(o.Manifests))}
	if o.Dropped > 0 {
		lines = append(lines, fmt.Sprintf("%d manifests that are no images were left out (attestations): they are about the old digests", o.Dropped))
	}
	for _, p := range o.Notified {
		lines = append(lines, p+" has indexed "+o.Ref)
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(c.Root().Writer, printable(l)); err != nil {
			return err
		}
	}
	return nil
}

// advice says what to do about an error of a registry.
func advice(err error) string {
	refused, _ := errors.AsType[*errcode.ErrorResponse](err)
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, http.ErrSchemeMismatch), untrusted:
		return ": if it is right that the registry has no certificate that is trusted, give --insecure-source or --insecure-destination"
	case errors.Is(err, auth.ErrBasicCredentialNotFound),
		refused != nil && (refused.StatusCode == http.StatusUnauthorized || refused.StatusCode == http.StatusForbidden):
		return ": docker login to the registry, or give --user"
	default:
		return ""
	}
}

// userFor is --user for a registry that it is meant for.
func userFor(c *cli.Command, meant bool) string {
	if meant {
		return c.String("user")
	}
	return ""
}

// imageName is a reference, taken apart.
type imageName struct {
	host, repo, tag, digest string
}

func (n imageName) String() string {
	s := n.host + "/" + n.repo
	if n.tag != "" {
		s += ":" + n.tag
	}
	if n.digest != "" {
		s += "@" + n.digest
	}
	return s
}

// object is what to ask the repository for: the digest, if there is one.
func (n imageName) object() string {
	if n.digest != "" {
		return n.digest
	}
	return n.tag
}

func parseImage(s string) (imageName, error) {
	ref, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return imageName{}, fmt.Errorf("%q: %w", s, err)
	}
	n := imageName{host: reference.Domain(ref), repo: reference.Path(ref)}
	if t, ok := ref.(reference.Tagged); ok {
		n.tag = t.Tag()
	}
	if d, ok := ref.(reference.Digested); ok {
		n.digest = d.Digest().String()
	}
	if n.object() == "" {
		return n, fmt.Errorf("%q has neither tag nor digest", s)
	}
	return n, nil
}

// openRepository makes a client of a repository.
func openRepository(ctx context.Context, n imageName, insecure bool, user string) (*remote.Repository, error) {
	repo, err := remote.NewRepository(n.host + "/" + n.repo)
	if err != nil {
		return nil, err
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	a := &auth.Client{Client: &http.Client{Transport: retry.NewTransport(t)}, Cache: auth.NewCache(), ClientID: "ctr-starlight"}
	a.SetUserAgent("ctr-starlight/" + version)
	if insecure {
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // is what the flag asks for
		a.BlockedRealmPrefixes = []netip.Prefix{}
		if repo.PlainHTTP, err = speaksHTTP(ctx, t, repo.Reference.Host()); err != nil {
			return nil, err
		}
	}
	if user != "" {
		name, secret, _ := strings.Cut(user, ":")
		a.Credential = auth.StaticCredential(repo.Reference.Host(), auth.Credential{Username: name, Password: secret})
	} else {
		store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
		if err != nil {
			return nil, fmt.Errorf("configuration of docker: %w", err)
		}
		a.Credential = credentials.Credential(store)
	}
	repo.Client = a
	return repo, nil
}

// speaksHTTP tells whether a registry speaks HTTP without TLS.
func speaksHTTP(ctx context.Context, t *http.Transport, host string) (bool, error) {
	client := &http.Client{Transport: t}
	ask := func(scheme string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+"/v2/", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		return errors.Join(err, resp.Body.Close())
	}
	tlsErr := ask("https")
	if tlsErr == nil {
		return false, nil
	}
	if err := ask("http"); err != nil {
		return false, errors.Join(tlsErr, err)
	}
	return true, nil
}

// notifyConverted has the proxies index an image with the credentials it was pushed with.
func notifyConverted(ctx context.Context, c *cli.Command, dst imageName, repo *remote.Repository) ([]string, error) {
	cred, err := repo.Client.(*auth.Client).Credential(ctx, repo.Reference.Host())
	if err != nil {
		return nil, err
	}
	r := &api.NotifyRequest{Ref: dst.String(), Username: cred.Username, Secret: cred.Password}
	if cred.RefreshToken != "" {
		r.Username, r.Secret = "", cred.RefreshToken
	}
	if p := c.String("platform"); p != allPlatforms {
		r.Platform = p
	}
	var proxies []string
	err = dial(func(ctx context.Context, _ *cli.Command, conn *grpc.ClientConn) error {
		proxies, err = index(ctx, c, api.NewStarlightClient(conn), r, func(string) error { return nil })
		return err
	})(ctx, c)
	if err != nil {
		err = errors.New(explain(err))
	}
	return proxies, err
}
