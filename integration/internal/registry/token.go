package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/wan"
)

const (
	tokenService = "test-registry"
	tokenIssuer  = "test-issuer"
	tokenKeyID   = "test-key"
	tokenLife    = 5 * time.Minute
)

// tokenServer gives bearer tokens by the rules of the distribution specification:
// to the one user what was asked for, to others nothing.
type tokenServer struct {
	url string
	key *ecdsa.PrivateKey
	srv *http.Server
}

func newTokenServer(ctx context.Context, ns *wan.Namespace, port int) (*tokenServer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("%s:%d", ns.Addr, port)
	l, err := ns.Listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	t := &tokenServer{url: "http://" + addr + "/token", key: key}
	t.srv = &http.Server{Handler: t, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = t.srv.Serve(l) }() // ends with close
	return t, nil
}

func (t *tokenServer) close() { _ = t.srv.Close() }

// access is what a token allows.
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// ServeHTTP answers GET with basic auth or without, and POST with a password grant.
func (t *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	user, pass, given := r.BasicAuth()
	if !given && r.Method == http.MethodPost {
		user, pass, given = r.PostForm.Get("username"), r.PostForm.Get("password"), true
	}
	if given && (user != User || pass != Password) {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
		return
	}
	var allowed []access
	if given {
		for _, field := range r.Form["scope"] {
			for scope := range strings.FieldsSeq(field) {
				if p := strings.Split(scope, ":"); len(p) == 3 {
					allowed = append(allowed, access{p[0], p[1], strings.Split(p[2], ",")})
				}
			}
		}
	}
	token, err := t.sign(user, allowed)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // a client that has gone is no loss
		"token": token, "access_token": token, "expires_in": int(tokenLife.Seconds()),
	})
}

func (t *tokenServer) sign(user string, allowed []access) (string, error) {
	now := time.Now()
	head, err := json.Marshal(map[string]string{"typ": "JWT", "alg": "ES256", "kid": tokenKeyID})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]any{
		"iss": tokenIssuer, "sub": user, "aud": tokenService, "access": allowed, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(tokenLife).Unix(),
	})
	if err != nil {
		return "", err
	}
	signed := b64(head) + "." + b64(body)
	h := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, t.key, h[:])
	if err != nil {
		return "", err
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return signed + "." + b64(sig), nil
}

// jwks is the public key as the registry wants it.
func (t *tokenServer) jwks() []byte {
	pub, err := t.key.PublicKey.Bytes() // 4, then both coordinates
	if err != nil {
		panic(err) // a key just made is valid
	}
	return fmt.Appendf(nil, `{"keys":[{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":%q,"x":%q,"y":%q}]}`,
		tokenKeyID, b64(pub[1:33]), b64(pub[33:]))
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
