package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// asProxyd makes the test binary be proxyd, so that tests meet a process.
const asProxyd = "STARLIGHT_TEST_AS_PROXYD"

func TestMain(m *testing.M) {
	if os.Getenv(asProxyd) != "" {
		main()
	}
	os.Exit(m.Run())
}

// testProxyd is a running proxyd.
type testProxyd struct {
	url string
	cmd *exec.Cmd
	log string // its file
}

func startProxyd(tb testing.TB, config string, args ...string) *testProxyd {
	tb.Helper()
	dir := tb.TempDir()
	addr := freeAddr(tb)
	p := &testProxyd{url: "http://" + addr, log: filepath.Join(dir, "log")}
	name := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(name, []byte(config), 0o600); err != nil {
		tb.Fatal(err)
	}
	log, err := os.Create(p.log)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = log.Close()
		if b, _ := os.ReadFile(p.log); tb.Failed() {
			tb.Logf("proxyd: %s", b)
		}
	})
	p.cmd = exec.Command(os.Args[0], append([]string{"serve", "--config", name, "--listen", addr, "--data-dir", filepath.Join(dir, "data"),
		"--plain-http-registry", "127.0.0.1:*"}, args...)...)
	p.cmd.Env = append(os.Environ(), asProxyd+"=1")
	p.cmd.Stderr = log
	startProcess(tb, p.cmd)
	waitHTTP(tb, p.url+"/healthz")
	return p
}

func (p *testProxyd) post(tb testing.TB, route string, body []byte, encoding string) *http.Response {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodPost, p.url+route, bytes.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	return resp
}

func (p *testProxyd) send(tb testing.TB, route string, req any) *http.Response {
	tb.Helper()
	body, encoding, err := wire.EncodeRequest(req)
	if err != nil {
		tb.Fatal(err)
	}
	return p.post(tb, route, body, encoding)
}

// code returns the code of a refused request, "" if it was not.
func (p *testProxyd) code(tb testing.TB, route string, req any) string {
	tb.Helper()
	resp := p.send(tb, route, req)
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return ""
	}
	var e wire.Error
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
		tb.Fatalf("body of %s: %v", resp.Status, err)
	}
	return e.Code
}

// pulled is what a worker has after a bundle.
type pulled struct {
	header   *wire.Header
	blobs    [][]byte
	tocs     map[toc.Digest]*toc.TOC
	list     []toc.Object
	objects  map[toc.Digest][]byte
	order    []uint32
	pieces   []wire.Range // one each
	progress int
	retried  bool
	frames   []tocFrame
}

// tocFrame tells how the TOC of a layer came.
type tocFrame struct {
	layer wire.Layer
	bytes int // of the payload, decoded
}

// pull sends delta requests until there is a header, and reads the bundle. have
// are TOCs that the worker holds, for objects that are named by their index.
func (p *testProxyd) pull(tb testing.TB, req wire.DeltaRequest, have ...*pulled) *pulled {
	tb.Helper()
	got := &pulled{tocs: map[toc.Digest]*toc.TOC{}, objects: map[toc.Digest][]byte{}}
	for _, h := range have {
		maps.Copy(got.tocs, h.tocs)
	}
	for range 3 {
		resp := p.send(tb, wire.RouteDelta, req)
		if resp.StatusCode != http.StatusOK {
			b, _ := io.ReadAll(resp.Body)
			tb.Fatalf("delta: %s: %s", resp.Status, b)
		}
		err := got.read(wire.NewReader(resp.Body))
		_ = resp.Body.Close()
		if err != nil {
			tb.Fatal(err)
		}
		if got.header != nil {
			return got
		}
	}
	tb.Fatal("proxyd is never ready")
	return nil
}

func (g *pulled) read(r *wire.Reader) error {
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch f.Type {
		case wire.FrameProgress:
			g.progress++
		case wire.FrameRetry:
			g.retried = true
		case wire.FrameHeader:
			g.header = f.Header
		case wire.FrameBlob:
			g.blobs = append(g.blobs, bytes.Clone(f.Payload))
		case wire.FrameTOC:
			if err := g.toc(f.Payload); err != nil {
				return err
			}
		case wire.FrameData:
			if err := g.data(f.Data); err != nil {
				return err
			}
		case wire.FrameError:
			return f.Err
		}
	}
}

// toc takes the next toc frame.
func (g *pulled) toc(payload []byte) error {
	sent := g.header.Layers
	for range g.frames {
		sent = sent[1+slices.IndexFunc(sent, func(l wire.Layer) bool { return l.Sent }):]
	}
	l := sent[slices.IndexFunc(sent, func(l wire.Layer) bool { return l.Sent })]
	g.frames = append(g.frames, tocFrame{l, len(payload)})
	encoded := bytes.Clone(payload)
	if l.Base != nil {
		var err error
		if encoded, err = wire.ApplyTOCPatch(g.tocs[l.Base.DiffID].Encode(), payload); err != nil {
			return err
		}
	}
	if sha256.Sum256(encoded) != l.TOC {
		return fmt.Errorf("the TOC of layer %s is another", l.DiffID)
	}
	t, err := toc.Decode(encoded)
	if err != nil {
		return err
	}
	g.tocs[t.DiffID] = t
	return nil
}

func (g *pulled) data(d *wire.Data) error {
	if g.list == nil {
		var layers []*toc.TOC
		for _, l := range g.header.Layers {
			layers = append(layers, g.tocs[l.DiffID])
		}
		g.list = toc.ObjectList(layers...)
	}
	c := d.Contents
	for _, p := range d.Index {
		o := &g.list[p.Object]
		if sha256.Sum256(c[:p.Length]) != o.PieceDigest(int(p.Piece)) {
			return fmt.Errorf("piece %d of object %s is wrong", p.Piece, o.Digest)
		}
		g.pieces = append(g.pieces, wire.Range{Object: p.Object, First: p.Piece, Pieces: 1})
		if p.Piece == 0 {
			g.order = append(g.order, p.Object)
		}
		if g.objects[o.Digest] == nil {
			g.objects[o.Digest] = make([]byte, o.Size)
		}
		copy(g.objects[o.Digest][int64(p.Piece)*toc.PieceSize:], c[:p.Length])
		c = c[p.Length:]
	}
	return nil
}

// check compares with the contents that an image has.
func (g *pulled) check(tb testing.TB, want map[toc.Digest][]byte) {
	tb.Helper()
	if len(g.objects) != len(want) || g.header.Objects != len(want) {
		tb.Errorf("got %d objects, the header says %d, want %d", len(g.objects), g.header.Objects, len(want))
	}
	for d, c := range want {
		if !bytes.Equal(g.objects[d], c) {
			tb.Errorf("object %s has %d bytes, want %d", d, len(g.objects[d]), len(c))
		}
	}
}

func (p *testProxyd) metric(tb testing.TB, name string) float64 {
	tb.Helper()
	resp, err := http.Get(p.url + "/metrics")
	if err != nil {
		tb.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(b)
	if m == nil {
		tb.Fatalf("no metric %s in:\n%s", name, b)
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// rss returns peak and current resident memory in MiB.
func (p *testProxyd) rss(tb testing.TB) (peak, now int) {
	tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "VmHWM:"):
			peak, _ = strconv.Atoi(f[1])
		case strings.HasPrefix(line, "VmRSS:"):
			now, _ = strconv.Atoi(f[1])
		}
	}
	return peak >> 10, now >> 10
}
