package delta

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

func writePEM(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeClient writes a self-signed client certificate, and its key.
func writeClient(t *testing.T, cert, key string) *x509.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, cert, "CERTIFICATE", der)
	writePEM(t, key, "PRIVATE KEY", kder)
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// What is renewed on the disk is used from the next connection and request on, and
// what is wrong there says which file it is, and nothing of its contents.
func TestSecretsAreReadWhenTheyAreUsed(t *testing.T) {
	dir := t.TempDir()
	f := Files{
		CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"),
		Token: filepath.Join(dir, "token"),
	}
	var seen struct{ token, cert string }
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.token, seen.cert = r.Header.Get("Authorization"), string(r.TLS.PeerCertificates[0].Raw)
		w.Header().Set("Connection", "close")                                          // so that the next request has a connection of its own
		_ = json.NewEncoder(w).Encode(wire.Ping{Version: "1", Protocol: wire.Version}) // a client that has gone is seen below
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}
	srv.StartTLS()
	defer srv.Close()
	c, err := New(Config{Address: srv.URL, Files: f})
	if err != nil {
		t.Fatal("files that are not there yet must not keep a client from being made:", err)
	}
	defer c.Close()
	ping := func() error {
		_, err := c.ping(t.Context(), c.urgent, 0)
		return err
	}
	fails := func(what string, want string) {
		t.Helper()
		err := ping()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", what, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v tells the token", what, err)
		}
	}
	fails("without files", f.Token)
	if err := os.WriteFile(f.Token, []byte("secret one"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails("two words", f.Token)
	if err := os.WriteFile(f.Token, []byte("secret-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails("no CA", f.CA)
	if err := os.WriteFile(f.CA, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails("no certificate", f.CA)
	writePEM(t, f.CA, "CERTIFICATE", srv.Certificate().Raw)
	fails("no client certificate", f.Cert)
	for _, token := range []string{"secret-1", "secret-2"} {
		if err := os.WriteFile(f.Token, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		cert := writeClient(t, f.Cert, f.Key)
		if err := ping(); err != nil {
			t.Fatal(err)
		}
		if seen.token != "Bearer "+token || seen.cert != string(cert.Raw) {
			t.Errorf("got token %q, and the certificate that is on the disk: %v", seen.token, seen.cert == string(cert.Raw))
		}
	}
}
