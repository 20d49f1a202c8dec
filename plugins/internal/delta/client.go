// Package delta is the worker's client of proxyd: it makes requests on warm
// connections, watches that answers keep coming, and checks what an answer says
// of an image before anybody builds on it.
//
// A [Client] talks to one proxyd. [Client.Delta] and [Client.Objects] return a
// [Bundle], whose frames are read one at a time; [ReadHeader] reads and checks
// everything before the first data frame. The contents of objects are checked by
// whoever stores them, piece by piece.
package delta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Config of a Client. Zero values other than Address are replaced by defaults.
type Config struct {
	// Address of the proxyd: "http://host:port" or "https://host[:port]", a
	// path prefix is allowed.
	Address string
	// Files are the certificates for https addresses, and the token.
	Files Files
	// DialTimeout bounds the TCP and, separately, the TLS handshake. Default 5 s.
	DialTimeout time.Duration
	// IdleTimeout is the longest time without a byte of an expected answer, up to the
	// end of its header. Default 10 s, ten times what a live proxyd lets pass
	// (wire.ProgressInterval).
	IdleTimeout time.Duration
	// StreamTimeout is the longest time without a byte of contents. Default 15 s.
	StreamTimeout time.Duration
	// ReceiveBuffer is the size of the sockets' receive buffers. Default 0: the
	// kernel adapts it, up to net.ipv4.tcp_rmem.
	ReceiveBuffer int
	// KeepFor is how long after its last use a connection is kept warm by
	// KeepWarm. Default one day.
	KeepFor time.Duration
	// PingEvery is the interval of KeepWarm. Default 45 s, below the minute after
	// which load balancers commonly drop idle connections.
	PingEvery time.Duration
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.DialTimeout, 5*time.Second)
	def(&c.IdleTimeout, 10*time.Second)
	def(&c.StreamTimeout, 15*time.Second)
	def(&c.KeepFor, 24*time.Hour)
	def(&c.PingEvery, 45*time.Second)
	return c
}

// Client of one proxyd. It is safe for concurrent use.
type Client struct {
	cfg  Config
	base *url.URL
	// Bulk streams and urgent requests have connections of their own: what is
	// asked for urgently must not queue behind megabytes in the send buffer of a
	// shared connection, which is what HTTP/2 would make of it.
	bulk, urgent *http.Transport
	used         atomic.Int64 // unix nanoseconds of the last request other than pings
	filled       atomic.Int64 // unix nanoseconds of the last fill
	streamed     atomic.Int64 // unix nanoseconds of the last byte of any answer to Delta
}

// New makes a Client. It opens no connection; see Warm.
func New(c Config) (*Client, error) {
	u, err := url.Parse(c.Address)
	switch {
	case err != nil:
		return nil, fmt.Errorf("proxy address %q: %w: %w", c.Address, err, errdefs.ErrInvalidArgument)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("proxy address %q does not begin with http:// or https://: %w", c.Address, errdefs.ErrInvalidArgument)
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("proxy address %q is not scheme://host:port: %w", c.Address, errdefs.ErrInvalidArgument)
	}
	c = c.withDefaults()
	return &Client{cfg: c, base: u, bulk: newTransport(c), urgent: newTransport(c)}, nil
}

// Address returns Config.Address.
func (c *Client) Address() string { return c.cfg.Address }

// Close closes idle connections. Bundles under way are not touched.
func (c *Client) Close() {
	c.bulk.CloseIdleConnections()
	c.urgent.CloseIdleConnections()
}

// Delta asks for an image. ctx governs the request and the reading of the bundle.
func (c *Client) Delta(ctx context.Context, r wire.DeltaRequest) (*Bundle, error) {
	b, err := c.bundle(ctx, c.bulk, wire.RouteDelta, r, wire.NewReader)
	if err == nil {
		b.g.last = &c.streamed
	}
	return b, err
}

// Streamed is when the last byte of any answer to Delta was received. A stream that gets
// none may only wait for the others.
func (c *Client) Streamed() time.Time { return time.Unix(0, c.streamed.Load()) }

// Objects asks for single objects at once. ctx governs the request and the reading
// of the bundle, which has no header.
func (c *Client) Objects(ctx context.Context, r wire.ObjectsRequest) (*Bundle, error) {
	b, err := c.bundle(ctx, c.urgent, wire.RouteObjects, r, wire.NewObjectsReader)
	if err == nil {
		b.streaming()
	}
	return b, err
}

func (c *Client) bundle(ctx context.Context, t *http.Transport, route string, body any, reader func(io.Reader) *wire.Reader) (*Bundle, error) {
	c.touch()
	resp, sent, err := c.post(ctx, t, route, body)
	if err != nil {
		return nil, err
	}
	if mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); mt != wire.BundleType {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("proxy %s answered %s with %q instead of a bundle: %w", c.cfg.Address, route, mt, ErrProtocol)
	}
	g := resp.Body.(*guard)
	return &Bundle{r: reader(g), g: g, sent: sent, addr: c.cfg.Address, idle: c.cfg.StreamTimeout}, nil
}

// maxAnswer is far above what any proxyd answers to a report.
const maxAnswer = 64 << 10

// Traces reports traces.
func (c *Client) Traces(ctx context.Context, r wire.TraceRequest) (wire.TraceResponse, error) {
	var answer wire.TraceResponse
	resp, _, err := c.post(ctx, c.urgent, wire.RouteTraces, r)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(b, &answer); err != nil || answer.Accepted != len(r.Traces) {
		return answer, fmt.Errorf("proxy %s does not say that it has %d traces: %w", c.cfg.Address, len(r.Traces), ErrProtocol)
	}
	return answer, nil
}

// Blob asks for a blob as the registry has it. Reading fails, instead of
// returning io.EOF, if the bytes are not those of r.Digest and r.Size.
func (c *Client) Blob(ctx context.Context, r wire.BlobRequest) (io.ReadCloser, error) {
	c.touch()
	resp, _, err := c.post(ctx, c.urgent, wire.RouteBlob, r)
	if err != nil {
		return nil, err
	}
	if resp.ContentLength >= 0 && resp.ContentLength != r.Size {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("proxy %s sends %d bytes of blob %s, wanted %d: %w",
			c.cfg.Address, resp.ContentLength, r.Digest, r.Size, errdefs.ErrDataLoss)
	}
	resp.Body.(*guard).idle = c.cfg.StreamTimeout
	return &verifiedBlob{rc: resp.Body, hash: sha256.New(), left: r.Size, want: r.Digest}, nil
}

// Ping measures a round trip on a warm connection; it opens one if there is none.
func (c *Client) Ping(ctx context.Context) (time.Duration, wire.Ping, error) {
	const tries = 4 // another request may take the warm connection away between two
	var rtt time.Duration
	for range tries {
		var reused bool
		trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}
		start := time.Now()
		p, err := c.ping(httptrace.WithClientTrace(ctx, trace), c.urgent, 0)
		if err != nil {
			return 0, wire.Ping{}, err
		}
		rtt = time.Since(start)
		if reused {
			return rtt, p, nil
		}
	}
	return 0, wire.Ping{}, fmt.Errorf("proxy %s closes its connections after each request: %w", c.cfg.Address, errdefs.ErrUnavailable)
}

// maxPing is far above what any proxyd answers to a ping.
const maxPing = 64 << 10

// ping asks for fill bytes of white space with the answer.
func (c *Client) ping(ctx context.Context, t *http.Transport, fill int) (wire.Ping, error) {
	var p wire.Ping
	route := wire.RoutePing
	if fill > 0 {
		route += "?" + url.Values{wire.FillParam: {strconv.Itoa(fill)}}.Encode()
	}
	resp, _, err := c.do(ctx, t, http.MethodGet, route, nil)
	if err != nil {
		return p, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPing+int64(fill)))
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, fmt.Errorf("proxy %s: answer to ping is not JSON (is it a proxyd?): %w", c.cfg.Address, ErrProtocol)
	}
	if p.Protocol != wire.Version {
		return p, fmt.Errorf("proxy %s (version %q) speaks protocol %d, wanted %d: %w",
			c.cfg.Address, clean(p.Version), p.Protocol, wire.Version, ErrProtocol)
	}
	p.Version = clean(p.Version)
	return p, nil
}

func (c *Client) touch() { c.used.Store(time.Now().UnixNano()) }

func (c *Client) post(ctx context.Context, t *http.Transport, route string, body any) (*http.Response, int64, error) {
	b, encoding, err := wire.EncodeRequest(body)
	if err != nil {
		return nil, 0, fmt.Errorf("request %s of proxy %s: %w", route, c.cfg.Address, err)
	}
	return c.do(ctx, t, http.MethodPost, route, &payload{b, encoding})
}

type payload struct {
	body     []byte
	encoding string
}

// do makes a request and returns its response if that is 200; the body is a *guard.
// It also returns the bytes of the request's body.
func (c *Client) do(ctx context.Context, t *http.Transport, method, route string, p *payload) (*http.Response, int64, error) {
	ctx, g := newGuard(ctx, c.cfg.Address, c.cfg.IdleTimeout)
	var body io.Reader
	var sent int64
	if p != nil {
		body, sent = bytes.NewReader(p.body), int64(len(p.body))
	}
	connect := c.cfg.DialTimeout*2 + c.cfg.IdleTimeout
	trace := &httptrace.ClientTrace{ // called by RoundTrip, below
		GetConn: func(string) { g.arm(connect) },
		GotConn: func(httptrace.GotConnInfo) { g.arm(c.cfg.IdleTimeout) },
	}
	path, query, _ := strings.Cut(route, "?")
	u := c.base.JoinPath(path)
	u.RawQuery = query
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), method, u.String(), body)
	if err != nil {
		g.end()
		return nil, 0, fmt.Errorf("proxy %s: %w: %w", c.cfg.Address, err, errdefs.ErrInvalidArgument)
	}
	req.Header.Set("User-Agent", "starlight")
	token, err := c.cfg.Files.token()
	if err != nil {
		g.end()
		return nil, 0, fmt.Errorf("proxy %s: %w: %w", c.cfg.Address, err, errdefs.ErrFailedPrecondition)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if p != nil {
		req.Header.Set("Content-Type", "application/json")
		if p.encoding != "" {
			req.Header.Set("Content-Encoding", p.encoding)
		}
		// All requests may be repeated. The empty slice (which is not sent) makes
		// the transport do so when the proxyd closed the warm connection meanwhile.
		req.Header["Idempotency-Key"] = []string{}
	}
	g.arm(connect)
	resp, err := t.RoundTrip(req) // not http.Client: no redirects, credentials go to this proxyd only
	g.disarm()
	if err != nil {
		err = g.explain(err)
		g.end()
		return nil, 0, err
	}
	g.body = resp.Body
	resp.Body = g
	if resp.StatusCode != http.StatusOK {
		defer g.Close()
		return nil, 0, c.refusal(route, resp)
	}
	return resp, sent, nil
}

// newTransport makes the connections for a path of up to 100 ms and 1 Gbit/s.
func newTransport(c Config) *http.Transport {
	d := &net.Dialer{
		Timeout: c.DialTimeout,
		// Finds out within half a minute that a warm connection has died
		// silently, and keeps the state of NATs on the way alive.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		Control:         receiveBuffer(c.ReceiveBuffer),
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true) // by ALPN, with TLS only
	return &http.Transport{
		Proxy:              nil, // HTTP_PROXY is for registries; a proxyd is configured by its address
		DialContext:        d.DialContext,
		DialTLSContext:     dialTLS(c, d.DialContext),
		DisableCompression: true, // bundles are compressed by frame
		ReadBufferSize:     256 << 10,
		// Request line, headers and body in one write: one burst of packets.
		WriteBufferSize:        64 << 10,
		MaxIdleConns:           8,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        c.KeepFor + c.PingEvery,
		MaxResponseHeaderBytes: 64 << 10,
		Protocols:              protocols,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     16 << 20, // > 100 ms x 1 Gbit/s = 12.5 MB
			MaxReceiveBufferPerConnection: 64 << 20,
			MaxReadFrameSize:              256 << 10,
			SendPingTimeout:               15 * time.Second,
			PingTimeout:                   10 * time.Second,
		},
	}
}
