package main

import (
	"bytes"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func newPulled() *pulled {
	return &pulled{tocs: map[toc.Digest]*toc.TOC{}, objects: map[toc.Digest][]byte{}}
}

// Requests that a worker makes at once get one plan: no content comes twice, in
// whatever order the requests arrive.
func TestJointRequests(t *testing.T) {
	reg := startRegistry(t, false)
	p := startProxyd(t, "", "--registry", reg.host)
	base := someFiles(1, 40)
	var imgs []*testImage
	for i, name := range []string{"a", "b", "c"} {
		imgs = append(imgs, reg.push(t, "joint/"+name, "1", base, someFiles(uint64(10+i), 10)))
		p.pull(t, wire.DeltaRequest{Ref: imgs[i].ref, Platform: "linux/amd64"}) // ingests
	}
	ask := func(i int, after ...string) *pulled {
		got := newPulled()
		resp := p.send(t, wire.RouteDelta, wire.DeltaRequest{
			Ref: imgs[i].ref, Platform: "linux/amd64", Worker: "w", Request: string(rune('a' + i)), After: after,
		})
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
		r := wire.NewReader(resp.Body)
		for got.header == nil {
			f, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			got.header = f.Header
		}
		// Contents only: TOCs that others bring are not here.
		for {
			f, err := r.Next()
			if err != nil {
				break
			}
			if f.Type == wire.FrameTOC {
				got.frames = append(got.frames, tocFrame{})
			}
		}
		return got
	}
	var wg sync.WaitGroup
	got := make([]*pulled, 3)
	// The last of them comes first, and waits for those that it names.
	for _, i := range []int{2, 1, 0} {
		wg.Go(func() { got[i] = ask(i, []string{"a", "b"}[:i]...) })
	}
	wg.Wait()
	for i, g := range got {
		want := []int{len(imgs[0].files), 10, 10}[i]
		if g.header.Objects != want || len(g.header.After) != i || len(g.frames) != []int{2, 1, 1}[i] {
			t.Errorf("request %d: got %d objects, %d TOCs, after %v; want %d objects", i, g.header.Objects, len(g.frames), g.header.After, want)
		}
	}
	// One that nobody has heard of is not waited for without end, and nothing is left out.
	if g := ask(0, "nobody"); g.header.Objects != len(imgs[0].files) || len(g.header.After) != 0 {
		t.Errorf("got %d objects after %v, want all", g.header.Objects, g.header.After)
	}
}

// What another stream would bring in its cold tail, and a start of this image reads, is
// taken over.
func TestHotObjectsAreTakenFromOtherStreams(t *testing.T) {
	reg := startRegistry(t, false)
	p := startProxyd(t, "precompress = false\n", "--registry", reg.host)
	app := append([]byte("#!/bin/sh\n"), bytes.Repeat([]byte("# of b, and data for a\n"), 100_000)...)
	tail := map[string][]byte{} // the largest comes last
	for i, c := range slices.Collect(maps.Values(someLarge(24))) {
		tail["data/"+string(rune('a'+i))] = c
	}
	tail["data/zz"] = app
	a := reg.push(t, "take/a", "1", tail)
	b := reg.push(t, "take/b", "1", map[string][]byte{"bin/app": app, "etc/x": []byte("x")})
	for _, img := range []*testImage{a, b} {
		p.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: "linux/amd64"})
	}
	// The socket is full long before the end of a's stream.
	resp := p.send(t, wire.RouteDelta, wire.DeltaRequest{Ref: a.ref, Platform: "linux/amd64", Worker: "w"})
	defer resp.Body.Close()
	first, r := newPulled(), wire.NewReader(resp.Body)
	for len(first.frames) == 0 {
		f, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		switch f.Type {
		case wire.FrameHeader:
			first.header = f.Header
		case wire.FrameTOC:
			if err := first.toc(f.Payload); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The worker says to have all of a, as it is on its way.
	second := p.pull(t, wire.DeltaRequest{
		Ref: b.ref, Platform: "linux/amd64", Worker: "w", Have: []wire.Have{{DiffID: first.header.Layers[0].DiffID}},
	}, first)
	if len(second.header.Taken) != 1 || !bytes.Equal(second.objects[second.list[second.header.Taken[0]].Digest], app) {
		t.Errorf("taken %v, want the program", second.header.Taken)
	}
	if err := first.read(r); err != nil {
		t.Fatal(err)
	}
	if n := len(first.objects); n != len(a.files)-1 {
		t.Errorf("the first stream brought %d objects, want all %d but the program", n, len(a.files))
	}
}

// someLarge are n contents of 1 MiB that do not compress.
func someLarge(n int) map[string][]byte {
	out := map[string][]byte{}
	x := uint32(1)
	for i := range n {
		b := make([]byte, toc.PieceSize)
		for j := range b {
			x = x*1664525 + 1013904223
			b[j] = byte(x >> 24)
		}
		out[string(rune('a'+i))] = b
	}
	return out
}

// Images that were traced as one group have one order: what one of them reads late waits
// for what another reads early, unless that is stuck.
func TestGroupIsSentByItsTimes(t *testing.T) {
	reg := startRegistry(t, false)
	p := startProxyd(t, "precompress = false\n", "--registry", reg.host)
	a := reg.push(t, "group/a", "1", someLarge(24))
	b := reg.push(t, "group/b", "1", map[string][]byte{"late": []byte("what b reads in the end")})
	for img, at := range map[*testImage]uint32{a: 10, b: 60_000} {
		got := p.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: "linux/amd64"})
		tr := wire.Trace{ID: "t", Group: "shop"}
		for i := range got.list {
			tr.Items = append(tr.Items, wire.TraceItem{Object: uint32(i), Time: at})
		}
		if code := p.code(t, wire.RouteTraces, wire.TraceRequest{Ref: img.byDigest, Platform: "linux/amd64", Traces: []wire.Trace{tr}}); code != "" {
			t.Fatal(code)
		}
	}
	began := time.Now()
	resp := p.send(t, wire.RouteDelta, wire.DeltaRequest{Ref: a.ref, Platform: "linux/amd64", Worker: "w"})
	defer resp.Body.Close()
	r := wire.NewReader(resp.Body)
	if _, err := r.Next(); err != nil { // the header; the rest is not read
		t.Fatal(err)
	}
	got := p.pull(t, wire.DeltaRequest{Ref: b.ref, Platform: "linux/amd64", Worker: "w"})
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("all of b came after %v, before what a reads first", took)
	}
	got.check(t, b.files)
}
