// Package registry runs a real registry (distribution) in a namespace of a link:
// open, with basic auth, or with token auth by a token server of its own.
package registry

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/tools"
	"github.com/starlight-delta/starlight/integration/internal/wan"
	"golang.org/x/crypto/bcrypt"
)

// Auth is the kind of authorization a registry asks for.
type Auth int

// Kinds of authorization.
const (
	Open  Auth = iota
	Basic      // htpasswd
	Token      // a bearer token of a token server
)

func (a Auth) String() string { return [...]string{"open", "basic", "token"}[a] }

// User and Password are the one account of registries that want one.
const (
	User     = "alice"
	Password = "correct horse" // with a space: clients must encode it
)

// Config of a registry.
type Config struct {
	Dir  string // for its data and configuration
	Port int
	Auth Auth
}

// Registry is a running registry.
type Registry struct {
	// Host is host:port, as in references.
	Host string

	ns     *wan.Namespace
	proc   *process.Process
	tokens *tokenServer
	client *http.Client
	auth   Auth
}

// Start starts a registry in a namespace, and waits until it answers.
func Start(ctx context.Context, ns *wan.Namespace, c Config) (_ *Registry, err error) {
	bin, err := tools.Registry(ctx)
	if err != nil {
		return nil, err
	}
	r := &Registry{Host: fmt.Sprintf("%s:%d", ns.Addr, c.Port), ns: ns, client: ns.Client(), auth: c.Auth}
	defer func() {
		if err != nil {
			_ = r.Close() // the first error tells more
		}
	}()
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	auth, err := r.authConfig(ctx, c)
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(c.Dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: info}\nhttp: {addr: '%s', secret: test}\n"+
		"storage: {filesystem: {rootdirectory: '%s'}}\n%s", r.Host, filepath.Join(c.Dir, "data"), auth)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(bin, "serve", conf)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if r.proc, err = process.Start(ns, "registry", cmd); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return r, r.proc.WaitLog(ctx, "listening on")
}

func (r *Registry) authConfig(ctx context.Context, c Config) (string, error) {
	switch c.Auth {
	case Basic:
		hash, err := bcrypt.GenerateFromPassword([]byte(Password), bcrypt.MinCost)
		if err != nil {
			return "", err
		}
		file := filepath.Join(c.Dir, "htpasswd")
		if err := os.WriteFile(file, []byte(User+":"+string(hash)+"\n"), 0o600); err != nil {
			return "", err
		}
		return fmt.Sprintf("auth: {htpasswd: {realm: test, path: '%s'}}\n", file), nil
	case Token:
		t, err := newTokenServer(ctx, r.ns, c.Port+1)
		if err != nil {
			return "", err
		}
		r.tokens = t
		file := filepath.Join(c.Dir, "jwks.json")
		if err := os.WriteFile(file, t.jwks(), 0o600); err != nil {
			return "", err
		}
		return fmt.Sprintf("auth: {token: {realm: '%s', service: '%s', issuer: '%s', jwks: '%s', signingalgorithms: [ES256]}}\n",
			t.url, tokenService, tokenIssuer, file), nil
	default:
		return "", nil
	}
}

// Ref is the reference of an image in this registry.
func (r *Registry) Ref(name, tag string) string {
	sep := ":"
	if strings.HasPrefix(tag, "sha256:") {
		sep = "@"
	}
	return r.Host + "/" + name + sep + tag
}

// Log is what the registry has said: one line for each request it answered.
func (r *Registry) Log() *process.Log { return r.proc.Log }

// Close stops the registry.
func (r *Registry) Close() error {
	if r.tokens != nil {
		r.tokens.close()
	}
	if r.proc == nil {
		return nil
	}
	return r.proc.Stop()
}
