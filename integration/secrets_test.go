package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// authority issues certificates into a directory.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir string) *authority {
	a := &authority{t: t, dir: dir}
	a.cert, a.key = a.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// issue writes NAME.pem and NAME.key. The first certificate signs itself.
func (a *authority) issue(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.Subject, c.SerialNumber = pkix.Name{CommonName: name}, big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: kder},
	} {
		if err := os.WriteFile(a.file(file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// A proxyd that demands a client certificate and a token serves the nodes that
// have both, and no others; what is renewed on the disk counts at once; and the
// token is in no log and no file of containerd.
func TestProxydWantsCertificateAndToken(t *testing.T) {
	w := newWorld(t, lan)
	a := newAuthority(t, w.Dir)
	a.issue("server", &x509.Certificate{IPAddresses: []net.IP{net.ParseIP(wan.CloudAddr)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	a.issue("node", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	const token = "a-token-that-is-nowhere-else"
	write := func(name, text string) string {
		t.Helper()
		if err := os.WriteFile(a.file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return a.file(name)
	}
	conf := write("proxyd.toml", fmt.Sprintf("[tls]\ncert_file = %q\nkey_file = %q\nclient_ca_file = %q\n[auth]\ntoken_file = %q\n",
		a.file("server.pem"), a.file("server.key"), a.file("ca.pem"), write("tokens", "another\n"+token+"\n")))
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	p := w.proxydWith(sandbox.ProxydConfig{Args: []string{"--config", conf}, TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}})
	ref := w.push("tinyhttp", "v1")

	engine := func(lines ...string) string {
		s := "  [[plugins.'io.containerd.starlight.v1.engine'.proxies]]\n    address = \"" + p.Address + "\"\n"
		for _, l := range lines {
			s += "    " + l + "\n"
		}
		return s
	}
	ca, cert, key := fmt.Sprintf("ca = %q", a.file("ca.pem")), fmt.Sprintf("cert = %q", a.file("node.pem")), fmt.Sprintf("key = %q", a.file("node.key"))
	tokenFile := fmt.Sprintf("token_file = %q", write("token", "wrong"))
	for name, tc := range map[string]struct{ conf, reason string }{
		"no-ca":    {engine(), "certificate"},
		"no-cert":  {engine(ca, tokenFile), "client certificate"},
		"no-token": {engine(ca, cert, key), "token"},
	} {
		n := w.node(sandbox.NodeConfig{Name: name, Engine: tc.conf})
		n.pull(ref)
		if s := n.status1(ref); s.Mode != "plain" || !strings.Contains(s.Reason, tc.reason) {
			t.Errorf("%s: got %+v, want a plain pull because of the %s", name, s, tc.reason)
		}
	}
	n := w.node(sandbox.NodeConfig{Engine: engine(ca, cert, key, tokenFile)})
	n.pull(ref)
	if s := n.status1(ref); s.Mode != "plain" || !strings.Contains(s.Reason, "token") {
		t.Errorf("got %+v with a wrong token, want a plain pull", s)
	}
	write("token", token+"\n")
	other, err := w.Push(t.Context(), image(t, "tinyhttp", "v2").Layout, "tinyhttp", "v2")
	if err != nil {
		t.Fatal(err)
	}
	n.pull(other)
	if s := n.status1(other); s.Mode != "delta" {
		t.Errorf("got %+v with certificate and token, want a delta", s)
	}
	n.wait(other)
	n.runReady(other, "app", starlight, image(t, "tinyhttp", "v2").Ready)
	if out := n.ctr("starlight", "proxy", "ping"); !strings.Contains(out, p.Address) {
		t.Errorf("ping: got %q", out)
	}
	if strings.Contains(n.Log(), token) || strings.Contains(p.Log.String(), token) {
		t.Error("a log tells the token")
	}
	state, err := os.ReadFile(filepath.Join(n.Root, "io.containerd.snapshotter.v1.starlight", "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(state), token) {
		t.Error("the state has the token")
	}
}
