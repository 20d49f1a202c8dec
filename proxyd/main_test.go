package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const platform = "linux/amd64"

// someFiles are n files of a seed, some of them of more than one piece.
func someFiles(seed uint64, n int) map[string][]byte {
	r := rand.New(rand.NewPCG(seed, 1))
	files := map[string][]byte{"bin/app": []byte("#!/bin/sh\n"), "empty": nil}
	for i := range n {
		b := make([]byte, 1+r.IntN(4000))
		if i%1000 == 7 {
			b = make([]byte, 2<<20+r.IntN(1<<20))
		}
		for j := range b {
			b[j] = byte(r.UintN(64))
		}
		files[fmt.Sprintf("usr/lib/d%d/f%d", i%37, i)] = b
	}
	return files
}

func TestPull(t *testing.T) {
	reg := startRegistry(t, false)
	p := startProxyd(t, "")
	base := someFiles(1, 3000)
	changed := map[string][]byte{"usr/lib/d1/f1": []byte("new"), "usr/lib/d2/new": bytes.Repeat([]byte("x"), 1<<20+1)}
	one := reg.push(t, "lib/app", "1", base)
	two := reg.push(t, "lib/app", "2", base, changed)

	fresh := p.pull(t, wire.DeltaRequest{Ref: one.ref, Platform: platform})
	fresh.check(t, one.files)
	if fresh.progress == 0 || !fresh.retried || len(fresh.blobs) != 3 || fresh.header.TotalObjects != len(one.files) {
		t.Errorf("first pull: %d progress frames, retried %v, %d blobs, %d objects in total", fresh.progress, fresh.retried, len(fresh.blobs), fresh.header.TotalObjects)
	}
	if sha256.Sum256(fresh.blobs[1]) != one.manifest {
		t.Error("the manifest is not the one that was pushed")
	}
	if got := fresh.list[fresh.order[0]].Digest; got != sha256.Sum256(base["bin/app"]) {
		t.Errorf("the first object is %s, want that of the program", got)
	}
	diff := fresh.header.Layers[0].DiffID

	t.Run("again", func(t *testing.T) {
		again := p.pull(t, wire.DeltaRequest{Ref: one.ref, Platform: platform})
		if again.progress != 0 || again.header.Plan != fresh.header.Plan || again.header.Stream == fresh.header.Stream {
			t.Errorf("got %d progress frames, plan %s, stream %q", again.progress, again.header.Plan, again.header.Stream)
		}
	})
	t.Run("update", func(t *testing.T) {
		want := map[toc.Digest][]byte{}
		for _, c := range changed {
			want[sha256.Sum256(c)] = c
		}
		up := p.pull(t, wire.DeltaRequest{Ref: two.ref, Platform: platform, Have: []wire.Have{{DiffID: diff}}}, fresh)
		up.check(t, want)
		if up.header.Layers[0].Sent || !up.header.Layers[1].Sent || up.header.TotalObjects != len(two.files) {
			t.Errorf("got layers %+v and %d objects in total, want the upper TOC only and %d", up.header.Layers, up.header.TotalObjects, len(two.files))
		}
	})
	t.Run("rebuilt layer", func(t *testing.T) {
		files := maps.Clone(base)
		files["usr/lib/d1/f1"] = []byte("rebuilt")
		three := reg.push(t, "lib/app", "3", files)
		up := p.pull(t, wire.DeltaRequest{Ref: three.ref, Platform: platform, Have: []wire.Have{{DiffID: diff}}}, fresh)
		f := up.frames[0]
		if f.layer.Base == nil || f.layer.Base.DiffID != diff || f.layer.Base.TOC != fresh.header.Layers[0].TOC {
			t.Fatalf("layer %+v, want it based on %s", f.layer, diff)
		}
		if most := len(files)/2 + 200; f.bytes > most {
			t.Errorf("patch of %d bytes for %d files, want at most %d", f.bytes, len(files), most)
		}
		up.check(t, map[toc.Digest][]byte{sha256.Sum256(files["usr/lib/d1/f1"]): files["usr/lib/d1/f1"]})
	})
	t.Run("resume", func(t *testing.T) {
		objects := fresh.tocs[diff].Objects
		missing := make([]byte, (len(objects)+7)/8)
		want := map[toc.Digest][]byte{}
		for i := 0; i < len(objects); i += 3 {
			missing[i/8] |= 1 << (i % 8)
			want[objects[i].Digest] = one.files[objects[i].Digest]
		}
		rest := p.pull(t, wire.DeltaRequest{
			Ref: one.byDigest, Platform: platform, HaveManifest: one.manifest, Have: []wire.Have{{DiffID: diff, Missing: missing}},
		}, fresh)
		rest.check(t, want)
		if len(rest.blobs) != 0 {
			t.Errorf("got %d blobs, want none", len(rest.blobs))
		}
	})
	t.Run("header only", func(t *testing.T) {
		h := p.pull(t, wire.DeltaRequest{Ref: one.ref, Platform: platform, HeaderOnly: true})
		if len(h.objects) != 0 || h.header.Objects != len(one.files) {
			t.Errorf("got %d objects, the header says %d", len(h.objects), h.header.Objects)
		}
	})
	t.Run("objects", func(t *testing.T) { testObjects(t, p, one, fresh) })
	t.Run("blob", func(t *testing.T) { testBlob(t, p, one) })
	t.Run("operator", func(t *testing.T) { testOperator(t, p) })
	t.Run("hostile", func(t *testing.T) { testHostile(t, p, one, fresh) })
}

func testObjects(t *testing.T, p *testProxyd, img *testImage, fresh *pulled) {
	ask := func(req wire.ObjectsRequest) *pulled {
		t.Helper()
		resp := p.send(t, wire.RouteObjects, req)
		defer resp.Body.Close()
		got := &pulled{list: fresh.list, objects: map[toc.Digest][]byte{}}
		if resp.StatusCode != http.StatusOK {
			b, _ := io.ReadAll(resp.Body)
			t.Fatalf("objects: %s: %s", resp.Status, b)
		}
		if err := got.read(wire.NewObjectsReader(resp.Body)); err != nil {
			t.Fatal(err)
		}
		return got
	}
	asked := []wire.Range{{Object: 5}, {Object: 17}, {Object: 3}}
	exact := ask(wire.ObjectsRequest{Ref: img.byDigest, Platform: platform, Objects: asked, Exact: true})
	if len(exact.objects) != len(asked) || exact.order[0] != 5 {
		t.Errorf("got %d objects, want %d; order %v", len(exact.objects), len(asked), exact.order)
	}
	if more := ask(wire.ObjectsRequest{Ref: img.byDigest, Platform: platform, Objects: asked, Stream: "unknown"}); len(more.objects) <= len(asked) {
		t.Errorf("got %d objects, want neighbours too", len(more.objects))
	}
	out := wire.ObjectsRequest{Ref: img.byDigest, Platform: platform, Objects: []wire.Range{{Object: 1 << 30}}}
	if got := p.code(t, wire.RouteObjects, out); got != wire.CodeInvalid {
		t.Errorf("an object out of range: got %q, want %q", got, wire.CodeInvalid)
	}
}

func testBlob(t *testing.T, p *testProxyd, img *testImage) {
	for d, want := range img.blobs {
		dg, err := toc.ParseDigest(d)
		if err != nil {
			t.Fatal(err)
		}
		req := wire.BlobRequest{Ref: img.byDigest, Digest: dg, Size: int64(len(want))}
		resp := p.send(t, wire.RouteBlob, req)
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(got, want) {
			t.Errorf("layer: %s, %d bytes, %v; want %d bytes", resp.Status, len(got), err, len(want))
		}
		req.Size++
		if got := p.code(t, wire.RouteBlob, req); got != wire.CodeInvalid {
			t.Errorf("wrong size: got %q, want %q", got, wire.CodeInvalid)
		}
		req.Digest[0] ^= 1
		if got := p.code(t, wire.RouteBlob, req); got != wire.CodeNotFound {
			t.Errorf("foreign blob: got %q, want %q", got, wire.CodeNotFound)
		}
	}
}

func testOperator(t *testing.T, p *testProxyd) {
	for _, path := range []string{"/healthz", "/readyz", "/metrics", wire.RoutePing} {
		resp, err := http.Get(p.url + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s: %s", path, resp.Status, b)
		}
		var ping wire.Ping
		if path == wire.RoutePing && (json.Unmarshal(b, &ping) != nil || ping.Protocol != wire.Version) {
			t.Errorf("ping: got %s", b)
		}
	}
	for _, name := range []string{"proxyd_bundle_bytes_total", "proxyd_bundle_objects_total", "proxyd_ingest_bytes_total",
		"proxyd_plan_duration_seconds_count", "proxyd_ingest_duration_seconds_count", `proxyd_requests_total{code="ok",route="delta"}`,
		`proxyd_upstream_requests_total{code="200",method="GET"}`} {
		if p.metric(t, name) == 0 {
			t.Errorf("%s is 0", name)
		}
	}
}

func testHostile(t *testing.T, p *testProxyd, img *testImage, fresh *pulled) {
	diff := fresh.header.Layers[0].DiffID
	huge := p.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: platform, Have: []wire.Have{{DiffID: diff, Missing: bytes.Repeat([]byte{0xff}, 1<<20)}}}, fresh)
	huge.check(t, img.files)
	unknown := p.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: platform, HeaderOnly: true, Have: []wire.Have{{DiffID: toc.Digest{1}}}})
	if unknown.header.Objects != len(img.files) {
		t.Errorf("an unknown layer: got %d objects, want %d", unknown.header.Objects, len(img.files))
	}
	bodies := map[string][]byte{
		"empty": nil, "no JSON": []byte("{"), "null": []byte("null"), "array": []byte("[]"), "digest": []byte(`{"ref":"a","have":[{"diffID":"sha256:00"}]}`),
		"giant": bytes.Repeat([]byte(" "), wire.MaxRequest+2<<10), "nested": bytes.Repeat([]byte("["), 1<<20),
		"platform": []byte(`{"ref":"` + img.ref + `","platform":"linux"}`), "reference": []byte(`{"ref":"http://u:hunter2@h/x:1","platform":"linux/amd64"}`),
	}
	for name, body := range bodies {
		resp := p.post(t, wire.RouteDelta, body, "")
		if _ = resp.Body.Close(); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: got %s, want 400", name, resp.Status)
		}
	}
	bomb, _ := wire.Compress(nil, make([]byte, 64<<20))
	resp := p.post(t, wire.RouteDelta, bomb, wire.EncodingZstd)
	if _ = resp.Body.Close(); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("bomb: got %s, want 400", resp.Status)
	}
	host, _, _ := strings.Cut(img.ref, "/")
	for name, tt := range map[string]struct{ ref, platform, code string }{
		"no image":    {host + "/none:1", platform, wire.CodeNotFound},
		"no tag":      {host + "/lib/app:none", platform, wire.CodeNotFound},
		"no platform": {img.ref, "linux/s390x", wire.CodeNotFound},
		"no registry": {"127.0.0.1:1/x:1", platform, wire.CodeUpstream},
	} {
		if got := p.code(t, wire.RouteDelta, wire.DeltaRequest{Ref: tt.ref, Platform: tt.platform}); got != tt.code {
			t.Errorf("%s: got %q, want %q", name, got, tt.code)
		}
	}
	if b, _ := os.ReadFile(p.log); bytes.Contains(b, []byte("hunter2")) {
		t.Error("the log holds a password")
	}
}

func TestPrivateRegistry(t *testing.T) {
	reg := startRegistry(t, true)
	p := startProxyd(t, "[registries]\ncache_ttl = \"0s\"\n")
	img := reg.push(t, "secret/app", "1", someFiles(3, 20))
	right := &wire.Credentials{Username: "user", Secret: password}
	wrong := &wire.Credentials{Username: "user", Secret: "hunter2"}
	for range 2 { // the second time proxyd knows the image
		for _, c := range []*wire.Credentials{nil, wrong} {
			if got := p.code(t, wire.RouteDelta, wire.DeltaRequest{Ref: img.ref, Platform: platform, Credentials: c}); got != wire.CodeUnauthorized {
				t.Errorf("delta with %v: got %q, want %q", c, got, wire.CodeUnauthorized)
			}
			if got := p.code(t, wire.RouteObjects, wire.ObjectsRequest{Ref: img.byDigest, Platform: platform, Credentials: c, Objects: []wire.Range{{Object: 0}}}); got != wire.CodeUnauthorized {
				t.Errorf("objects with %v: got %q, want %q", c, got, wire.CodeUnauthorized)
			}
			if got := p.code(t, wire.RouteBlob, wire.BlobRequest{Ref: img.byDigest, Credentials: c, Digest: img.manifest, Size: 1}); got != wire.CodeUnauthorized {
				t.Errorf("blob with %v: got %q, want %q", c, got, wire.CodeUnauthorized)
			}
		}
		p.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: platform, Credentials: right}).check(t, img.files)
	}
	if b, _ := os.ReadFile(p.log); bytes.Contains(b, []byte("hunter2")) || bytes.Contains(b, []byte("correct horse")) {
		t.Error("the log holds a password")
	}
}

// A worker that was given a private image gets the rest of it by its ticket: that image,
// at this proxyd, and nothing else.
func TestTicket(t *testing.T) {
	reg := startRegistry(t, true)
	p := startProxyd(t, "[registries]\ncache_ttl = \"0s\"\n")
	img, other := reg.push(t, "secret/app", "1", someFiles(3, 20)), reg.push(t, "secret/other", "1", someFiles(4, 20))
	right := &wire.Credentials{Username: "user", Secret: "correct horse"}
	wrong := &wire.Credentials{Username: "user", Secret: "hunter2"}
	ticket := p.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: platform, Credentials: right}).header.Ticket
	p.pull(t, wire.DeltaRequest{Ref: other.ref, Platform: platform, Credentials: right})
	again := p.pull(t, wire.DeltaRequest{Ref: img.byDigest, Platform: platform, Ticket: ticket})
	again.check(t, img.files)
	if again.header.Ticket != ticket {
		t.Error("a ticket alone got another one: it would live for ever")
	}
	if got := p.code(t, wire.RouteObjects, wire.ObjectsRequest{Ref: img.byDigest, Platform: platform, Ticket: ticket, Objects: []wire.Range{{Object: 0}}}); got != "" {
		t.Errorf("objects: %q", got)
	}
	for name, req := range map[string]wire.DeltaRequest{
		"another image":       {Ref: other.byDigest, Ticket: ticket},
		"by tag":              {Ref: img.ref, Ticket: ticket},
		"forged":              {Ref: img.byDigest, Ticket: ticket[:20] + strings.Repeat("A", len(ticket)-20)},
		"none":                {Ref: img.byDigest},
		"refused credentials": {Ref: img.byDigest, Ticket: ticket, Credentials: wrong},
	} {
		req.Platform = platform
		if got := p.code(t, wire.RouteDelta, req); got != wire.CodeUnauthorized {
			t.Errorf("%s: got %q, want %q", name, got, wire.CodeUnauthorized)
		}
	}
	if b, _ := os.ReadFile(p.log); bytes.Contains(b, []byte(ticket)) {
		t.Error("the log holds a ticket")
	}
}

func TestDeniedRegistryIsNotContacted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	contacted := make(chan struct{}, 1)
	go func() {
		if _, err := l.Accept(); err == nil {
			contacted <- struct{}{}
		}
	}()
	p := startProxyd(t, "[registries]\nallowed = [\"*.example.com\"]\n")
	if got := p.code(t, wire.RouteDelta, wire.DeltaRequest{Ref: l.Addr().String() + "/x:1", Platform: platform}); got != wire.CodeDenied {
		t.Errorf("got %q, want %q", got, wire.CodeDenied)
	}
	select {
	case <-contacted:
		t.Error("proxyd contacted a registry that it may not")
	default:
	}
}

// TestStalledClientIsCutOff: a client that takes nothing loses its stream.
func TestStalledClientIsCutOff(t *testing.T) {
	reg := startRegistry(t, false)
	p := startProxyd(t, "[limits]\nstall = \"1s\"\n")
	big := make([]byte, 48<<20)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(big) // never fails
	img := reg.push(t, "big", "1", map[string][]byte{"big": big})
	p.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: platform, HeaderOnly: true})
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body, _, err := wire.EncodeRequest(wire.DeltaRequest{Ref: img.ref, Platform: platform})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", wire.RouteDelta, len(body), body)
	waitFor(t, func() bool { return p.metric(t, "proxyd_streams_active") == 1 })
	waitFor(t, func() bool { return p.metric(t, "proxyd_streams_active") == 0 })
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("it does not happen")
		}
	}
}

// TestMemory serves 10 deltas of a large image at once.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 5 GB")
	}
	reg := startRegistry(t, false)
	p := startProxyd(t, "")
	files := someFiles(5, 5000)
	rng := rand.NewChaCha8([32]byte{2})
	for i := range 60 {
		b := make([]byte, 8<<20)
		_, _ = rng.Read(b) // never fails
		files[fmt.Sprintf("big/%d", i)] = b
	}
	img := reg.push(t, "large", "1", files)
	began := time.Now()
	p.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: platform, HeaderOnly: true})
	ingested, _ := p.rss(t)
	t.Logf("ingest took %v, peak RSS %d MiB", time.Since(began), ingested)
	began = time.Now()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			resp := p.send(t, wire.RouteDelta, wire.DeltaRequest{Ref: img.ref, Platform: platform})
			defer resp.Body.Close()
			r := wire.NewReader(resp.Body)
			objects := 0
			for {
				f, err := r.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Error(err)
					return
				}
				if f.Type == wire.FrameData {
					objects += len(f.Data.Index)
				}
			}
			if objects < len(img.files) {
				t.Errorf("got %d pieces, want at least %d", objects, len(img.files))
			}
		})
	}
	wg.Wait()
	peak, now := p.rss(t)
	t.Logf("10 deltas took %v, RSS %d MiB, peak %d MiB", time.Since(began), now, peak)
	if peak > 200 && !raceEnabled {
		t.Errorf("peak RSS is %d MiB, want at most 200", peak)
	}
}

func TestDrain(t *testing.T) {
	p := startProxyd(t, "")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("got %v, want exit 0", err)
	}
}

// BenchmarkFirstByte is the warm header of an image of 25000 files for a worker
// that has the version before it.
func BenchmarkFirstByte(b *testing.B) {
	reg := startRegistry(b, false)
	p := startProxyd(b, "")
	old := map[string][]byte{}
	for i := range 25000 {
		old[fmt.Sprintf("usr/lib/d%d/f%d", i%500, i)] = fmt.Appendf(nil, "content of file %d", i)
	}
	cur := maps.Clone(old)
	for i := range 5000 {
		cur[fmt.Sprintf("usr/lib/d%d/f%d", i%500, i)] = fmt.Appendf(nil, "new content of file %d", i)
	}
	one, two := reg.push(b, "bench", "1", old), reg.push(b, "bench", "2", cur)
	have := []wire.Have{{DiffID: p.pull(b, wire.DeltaRequest{Ref: one.ref, Platform: platform, HeaderOnly: true}).header.Layers[0].DiffID}}
	req := wire.DeltaRequest{Ref: two.ref, Platform: platform, Have: have, HeaderOnly: true}
	p.pull(b, req)
	for b.Loop() {
		resp := p.send(b, wire.RouteDelta, req)
		if _, err := wire.NewReader(resp.Body).Next(); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		b.StartTimer()
	}
}
