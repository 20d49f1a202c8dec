package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// TestTraces: what workers report is what the next worker gets first, and what the
// next version begins with.
func TestTraces(t *testing.T) {
	reg, p := startRegistry(t, false), startProxyd(t, "")
	r := rand.New(rand.NewPCG(3, 4))
	content := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.UintN(256))
		}
		return b
	}
	files := func(version string) map[string][]byte {
		f := map[string][]byte{"opt/large.jar": content(5 << 20), "usr/lib/libx.so.1." + version: content(3000), "opt/late": content(2000), "opt/same": []byte("same")}
		for i := range 500 {
			f[fmt.Sprintf("usr/lib/f%d", i)] = content(1000)
		}
		return f
	}
	v1, v2 := files("1"), files("2")
	one, two := reg.push(t, "lib/app", "1", v1), reg.push(t, "lib/app", "2", v2)
	before := p.pull(t, wire.DeltaRequest{Ref: one.ref, Platform: platform})
	index := func(g *pulled, content []byte) uint32 {
		t.Helper()
		i := slices.IndexFunc(g.list, func(o toc.Object) bool { return o.Digest == sha256.Sum256(content) })
		if i < 0 {
			t.Fatal("no such object")
		}
		return uint32(i)
	}
	// wanted is the order of v's files: the end of the large one, its
	// beginning, and two small ones.
	wanted := func(g *pulled, v map[string][]byte, lib string) []wire.Range {
		large := index(g, v["opt/large.jar"])
		return []wire.Range{
			{Object: index(g, v["opt/late"]), Pieces: 1}, {Object: large, First: 4, Pieces: 1}, {Object: large, Pieces: 1},
			{Object: index(g, v[lib]), Pieces: 1}, {Object: index(g, v["opt/same"]), Pieces: 1},
		}
	}
	report := func(id string, items []wire.Range) wire.TraceRequest {
		tr := wire.Trace{ID: id}
		for i, it := range items {
			tr.Items = append(tr.Items, wire.TraceItem{Object: it.Object, First: it.First, Pieces: it.Pieces, Time: uint32(i)})
		}
		return wire.TraceRequest{Ref: one.byDigest, Platform: platform, Traces: []wire.Trace{tr}}
	}
	want := wanted(before, v1, "usr/lib/libx.so.1.1")
	if slices.Equal(before.pieces[:len(want)], want) {
		t.Fatal("the order is right without traces, so that this test shows nothing")
	}
	resp := p.send(t, wire.RouteTraces, report("1", want))
	var answer wire.TraceResponse
	err := json.NewDecoder(resp.Body).Decode(&answer)
	_ = resp.Body.Close()
	if err != nil || answer.Accepted != 1 {
		t.Fatalf("%s: %+v, %v", resp.Status, answer, err)
	}
	after := p.pull(t, wire.DeltaRequest{Ref: one.ref, Platform: platform})
	after.check(t, one.files)
	if got := after.pieces[:len(want)]; !slices.Equal(got, want) {
		t.Errorf("after a report pieces come as %v, want %v", got, want)
	}
	if n := p.metric(t, "proxyd_traces_total"); n != 1 {
		t.Errorf("proxyd counts %v traces", n)
	}

	next := p.pull(t, wire.DeltaRequest{Ref: two.ref, Platform: platform})
	next.check(t, two.files)
	want2 := wanted(next, v2, "usr/lib/libx.so.1.2")
	if got := next.pieces[:len(want2)]; !slices.Equal(got, want2) {
		t.Errorf("the next version begins with %v, want %v", got, want2)
	}

	// A worker that reports nonsense is one of many at most.
	odd := slices.Clone(want)
	slices.Reverse(odd)
	if code := p.code(t, wire.RouteTraces, report("1", want)); code != "" { // again: the same trace
		t.Error(code)
	}
	if code := p.code(t, wire.RouteTraces, report("2", want)); code != "" {
		t.Error(code)
	}
	if code := p.code(t, wire.RouteTraces, report("3", odd)); code != "" {
		t.Error(code)
	}
	outvoted := p.pull(t, wire.DeltaRequest{Ref: one.ref, Platform: platform})
	if got := outvoted.pieces[:len(want)]; !slices.Equal(got, want) {
		t.Errorf("an odd trace makes %v of %v", got, want)
	}
	for name, req := range map[string]wire.TraceRequest{
		"object out of range": report("4", []wire.Range{{Object: 1 << 20}}),
		"no items":            report("5", nil),
	} {
		if code := p.code(t, wire.RouteTraces, req); code != wire.CodeInvalid {
			t.Errorf("%s: code %q", name, code)
		}
	}
}

// TestTracesNeedTheImage: only who may pull an image may report on it.
func TestTracesNeedTheImage(t *testing.T) {
	reg, p := startRegistry(t, true), startProxyd(t, "")
	img := reg.push(t, "lib/private", "1", map[string][]byte{"a": []byte("a"), "b": bytes.Repeat([]byte("b"), 100)})
	creds := &wire.Credentials{Username: "user", Secret: "correct horse"}
	p.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: platform, Credentials: creds})
	req := wire.TraceRequest{Ref: img.byDigest, Platform: platform, Traces: []wire.Trace{{ID: "1", Items: []wire.TraceItem{{Object: 1}}}}}
	if code := p.code(t, wire.RouteTraces, req); code != wire.CodeUnauthorized {
		t.Errorf("without credentials: code %q", code)
	}
	req.Credentials = &wire.Credentials{Username: "user", Secret: "wrong"}
	if code := p.code(t, wire.RouteTraces, req); code != wire.CodeUnauthorized {
		t.Errorf("with wrong credentials: code %q", code)
	}
	req.Credentials = creds
	if code := p.code(t, wire.RouteTraces, req); code != "" {
		t.Errorf("with credentials: code %q", code)
	}
}
