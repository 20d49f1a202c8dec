package delta

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// maxSecret is far above what certificates and tokens need.
const maxSecret = 1 << 20

// Files say whom a proxyd is and who we are. They are read when they are needed, so
// that what is renewed on the disk is used from then on, and nothing is kept. Empty
// names stand for nothing.
type Files struct {
	CA        string // certificates that the proxyd's must come from; "": those of the system
	Cert, Key string // of the client, in PEM; Key may be in the file of Cert
	Token     string // bearer token
}

// tls reads the certificates.
func (f Files) tls() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := readSecret(f.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: %s holds no certificate in PEM", f.CA)
		}
	}
	if f.Cert != "" {
		cert, err := readSecret(f.Cert)
		if err != nil {
			return nil, fmt.Errorf("cert: %w", err)
		}
		key := cert
		if f.Key != "" {
			if key, err = readSecret(f.Key); err != nil {
				return nil, fmt.Errorf("key: %w", err)
			}
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("client certificate %s: %w", f.Cert, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// token reads the token; "" if there is none.
func (f Files) token() (string, error) {
	if f.Token == "" {
		return "", nil
	}
	b, err := readSecret(f.Token)
	if err != nil {
		return "", fmt.Errorf("token_file: %w", err)
	}
	fields := strings.Fields(string(b))
	if len(fields) != 1 {
		return "", fmt.Errorf("token_file: %s holds %d words, and a token is one", f.Token, len(fields))
	}
	return fields[0], nil
}

func readSecret(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxSecret)
	}
	return b, err
}

// dialTLS makes connections with the certificates that there are then.
func dialTLS(c Config, dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	sessions := tls.NewLRUClientSessionCache(8)
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		cfg, err := c.Files.tls()
		if err != nil {
			return nil, err
		}
		if cfg.ServerName, _, err = net.SplitHostPort(addr); err != nil {
			return nil, err
		}
		cfg.NextProtos = []string{"h2", "http/1.1"}
		if c.Files.Cert == "" { // a resumed session is one of the certificate that it began with
			cfg.ClientSessionCache = sessions
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		t := tls.Client(conn, cfg)
		ctx, cancel := context.WithTimeout(ctx, c.DialTimeout)
		defer cancel()
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return t, nil
	}
}
