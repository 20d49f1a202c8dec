package integration

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/wan"
	"github.com/starlight-delta/starlight/internal/fscmp"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// mangler stands before a real proxyd and changes its bundles.
type mangler struct {
	to     *httputil.ReverseProxy
	mangle func(w *wire.Writer, f wire.Frame) error
}

var errCut = errors.New("cut here")

func newMangler(from *wan.Namespace, proxyd string, mangle func(*wire.Writer, wire.Frame) error) (*mangler, error) {
	u, err := url.Parse(proxyd)
	if err != nil {
		return nil, err
	}
	m := &mangler{to: httputil.NewSingleHostReverseProxy(u), mangle: mangle}
	m.to.Transport = from.Client().Transport
	m.to.ModifyResponse = m.modify
	return m, nil
}

func (m *mangler) modify(r *http.Response) error {
	if r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != wire.BundleType {
		return nil
	}
	in := wire.NewReader(r.Body)
	if r.Request.URL.Path == wire.RouteObjects {
		in = wire.NewObjectsReader(r.Body)
	}
	body := r.Body
	pr, pw := io.Pipe()
	r.Body = pr
	r.Header.Del("Content-Length")
	r.ContentLength = -1
	go func() {
		defer body.Close()
		out := wire.NewWriter(pw)
		for {
			f, err := in.Next()
			if err == nil {
				err = m.mangle(out, f)
			}
			if err == nil {
				err = out.Flush()
			}
			if err != nil || f.Type == wire.FrameEnd {
				pw.CloseWithError(err) // nil is the end
				return
			}
		}
	}()
	return nil
}

// pass writes a frame as it came.
func pass(w *wire.Writer, f wire.Frame) error {
	switch f.Type {
	case wire.FrameProgress:
		return w.Progress(*f.Progress)
	case wire.FrameRetry:
		return w.Retry()
	case wire.FrameHeader:
		return w.Header(f.Header)
	case wire.FrameBlob:
		return w.Blob(f.Payload)
	case wire.FrameTOC:
		return w.TOC(f.Payload)
	case wire.FrameData:
		return w.Data(f.Data.Index, f.Data.Contents, false)
	case wire.FrameEnd:
		return w.End()
	default:
		return w.Error(f.Err)
	}
}

// hostileNames puts names into TOCs that lead out of the tree, and makes the
// header vouch for them.
func hostileNames(name string) func(*wire.Writer, wire.Frame) error {
	var header *wire.Header
	var sent []int // layers whose TOCs follow
	var tocs [][]byte
	var blobs [][]byte
	return func(w *wire.Writer, f wire.Frame) error {
		switch f.Type {
		case wire.FrameHeader:
			h := *f.Header
			h.Layers = append([]wire.Layer(nil), h.Layers...)
			header, sent, tocs, blobs = &h, nil, nil, nil
			for i, l := range h.Layers {
				if l.Sent {
					sent = append(sent, i)
				}
			}
			return nil
		case wire.FrameBlob:
			blobs = append(blobs, bytes.Clone(f.Payload))
			return nil
		case wire.FrameTOC:
			t, err := toc.Decode(f.Payload)
			if err != nil {
				return err
			}
			t.Entries[len(t.Entries)-1].Name = name
			enc := t.Encode()
			header.Layers[sent[len(tocs)]].TOC = sha256.Sum256(enc)
			tocs = append(tocs, enc)
			if len(tocs) < len(sent) {
				return nil
			}
			errs := []error{w.Header(header)}
			for _, b := range blobs {
				errs = append(errs, w.Blob(b))
			}
			for _, b := range tocs {
				errs = append(errs, w.TOC(b))
			}
			return errors.Join(errs...)
		default:
			return pass(w, f)
		}
	}
}

// A proxyd that lies is refused: the container sees right bytes or waits for them
// from the registry, and nothing wrong stays on the disk.
func TestHostileProxy(t *testing.T) {
	flip := func(b []byte) []byte {
		b = bytes.Clone(b)
		if len(b) > 0 {
			b[len(b)/2] ^= 0xff
		}
		return b
	}
	stall := make(chan struct{})
	t.Cleanup(func() { close(stall) })
	for _, c := range []struct {
		name   string
		mode   string // how the image was pulled in the end
		mangle func() func(*wire.Writer, wire.Frame) error
	}{
		{"is honest after all", "delta", func() func(*wire.Writer, wire.Frame) error { return pass }},
		{"wrong contents", "delta", func() func(*wire.Writer, wire.Frame) error {
			return func(w *wire.Writer, f wire.Frame) error {
				if f.Type == wire.FrameData {
					return w.Data(f.Data.Index, flip(f.Data.Contents), false)
				}
				return pass(w, f)
			}
		}},
		{"wrong manifest", "plain", func() func(*wire.Writer, wire.Frame) error {
			return func(w *wire.Writer, f wire.Frame) error {
				if f.Type == wire.FrameBlob {
					return w.Blob(flip(f.Payload))
				}
				return pass(w, f)
			}
		}},
		{"wrong TOC", "plain", func() func(*wire.Writer, wire.Frame) error {
			return func(w *wire.Writer, f wire.Frame) error {
				if f.Type == wire.FrameTOC {
					return w.TOC(flip(f.Payload))
				}
				return pass(w, f)
			}
		}},
		{"truncates the header", "plain", func() func(*wire.Writer, wire.Frame) error {
			return func(w *wire.Writer, f wire.Frame) error {
				if f.Type == wire.FrameTOC {
					return errCut
				}
				return pass(w, f)
			}
		}},
		{"truncates the data", "delta", func() func(*wire.Writer, wire.Frame) error {
			return func(w *wire.Writer, f wire.Frame) error {
				if f.Type == wire.FrameData {
					return errCut
				}
				return pass(w, f)
			}
		}},
		{"ends without sending", "delta", func() func(*wire.Writer, wire.Frame) error {
			return func(w *wire.Writer, f wire.Frame) error {
				if f.Type == wire.FrameData {
					return nil
				}
				return pass(w, f)
			}
		}},
		{"stalls before the header", "plain", func() func(*wire.Writer, wire.Frame) error {
			return func(w *wire.Writer, f wire.Frame) error {
				if f.Type == wire.FrameHeader {
					<-stall
					return errCut
				}
				return pass(w, f)
			}
		}},
		{"stalls in the data", "delta", func() func(*wire.Writer, wire.Frame) error {
			return func(w *wire.Writer, f wire.Frame) error {
				if f.Type == wire.FrameData {
					<-stall
					return errCut
				}
				return pass(w, f)
			}
		}},
		{"names with ..", "plain", func() func(*wire.Writer, wire.Frame) error { return hostileNames("../../../escaped") }},
		{"absolute names", "plain", func() func(*wire.Writer, wire.Frame) error { return hostileNames("/escaped") }},
		{"names with NUL", "plain", func() func(*wire.Writer, wire.Frame) error { return hostileNames("a\x00b") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			w := newWorld(t, lan)
			p := w.proxyd()
			m, err := newMangler(w.Link.Cloud, p.Address, c.mangle())
			if err != nil {
				t.Fatal(err)
			}
			n := w.node(sandbox.NodeConfig{Proxies: []string{w.listen("8099", m.to)}, Engine: "  header_timeout = \"3s\"\n"})
			ref := w.push("tinyhttp", "v2")
			n.pull(ref)
			n.wait(ref)
			if s := n.status1(ref); s.Mode != c.mode {
				t.Errorf("got %+v, want mode %s", s, c.mode)
			}
			if err := n.Pull(t.Context(), ref, "--snapshotter", overlayfs); err != nil {
				t.Fatal(err)
			}
			diffs, err := fscmp.Compare(n.mount(t, ref, overlayfs), n.mount(t, ref, starlight), fscmp.Options{DirTimesBefore: start})
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range diffs {
				t.Error(d)
			}
			n.runReady(ref, "app", starlight, image(t, "tinyhttp", "v2").Ready)
		})
	}
}
