package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// plan asks for a plan and returns it.
func (p *testProxyd) plan(tb testing.TB, req wire.PlanRequest) (*wire.Plan, error) {
	tb.Helper()
	req.Platform = platform
	resp := p.send(tb, wire.RoutePlan, req)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		tb.Fatalf("plan: %s: %s", resp.Status, b)
	}
	r := wire.NewReader(resp.Body)
	for {
		f, err := r.Next()
		switch {
		case err != nil:
			return nil, err
		case f.Err != nil:
			return nil, f.Err
		case f.Plan != nil:
			if _, err := r.Next(); !errors.Is(err, io.EOF) {
				tb.Errorf("after the plan: %v", err)
			}
			return f.Plan, nil
		}
	}
}

// What a plan says is what the pull brings, for a fresh node and for one that has the
// version before, and nothing is sent for it.
func TestPlan(t *testing.T) {
	reg := startRegistry(t, false)
	p := startProxyd(t, "")
	files := someFiles(1, 200)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	for i := range big {
		big[i] ^= byte(i * i >> 9)
	}
	files["bin/program"] = big
	old := reg.push(t, "lib/app", "1", files)
	files["bin/program"] = append([]byte("changed"), big...)
	fresh := make([]byte, 100_000)
	for i := range fresh {
		fresh[i] = byte(i * i >> 3)
	}
	files["etc/new"] = fresh
	next := reg.push(t, "lib/app", "2", files)

	all, err := p.plan(t, wire.PlanRequest{DeltaRequest: wire.DeltaRequest{Ref: old.ref, Kinds: wire.PatchKinds}, Top: 3})
	if err != nil {
		t.Fatal(err)
	}
	if all.Manifest != old.manifest || all.Layers != 1 || all.KnownLayers != 0 || all.PlainBytes != all.LayerBytes || all.LayerBytes == 0 {
		t.Errorf("fresh: got %+v", all)
	}
	if all.New != (wire.Share{Objects: all.Total.Objects, Bytes: all.Total.Bytes, Wire: all.New.Wire}) || all.Local.Objects+all.Patched.Objects != 0 {
		t.Errorf("fresh: got %+v, want all of it new", all)
	}
	bundle := func(req wire.DeltaRequest) int64 {
		resp := p.send(t, wire.RouteDelta, req)
		defer resp.Body.Close()
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status, err)
		}
		return n
	}
	if n := bundle(wire.DeltaRequest{Ref: old.ref, Platform: platform}); n < all.Wire*9/10 || n > all.Wire*11/10 {
		t.Errorf("fresh: the plan says %d bytes, the bundle has %d", all.Wire, n)
	}
	if all.MostWire != all.Wire {
		t.Errorf("fresh: at most %d bytes, want %d, as there are no patches", all.MostWire, all.Wire)
	}
	if len(all.Files) != 3 || all.Files[0].Wire < all.Files[1].Wire || all.Files[1].Wire < all.Files[2].Wire {
		t.Errorf("fresh: got files %+v, want the three largest", all.Files)
	}

	had := p.pull(t, wire.DeltaRequest{Ref: old.ref, Platform: platform})
	have := []wire.Have{{DiffID: had.header.Layers[0].DiffID}, {DiffID: toc.Digest{1}}}
	req := wire.DeltaRequest{Ref: next.ref, Kinds: wire.PatchKinds, Have: have}
	byHave, err := p.plan(t, wire.PlanRequest{DeltaRequest: req, Top: wire.MaxTop})
	if err != nil {
		t.Fatal(err)
	}
	if byHave.Strange != 1 || byHave.Patched.Objects != 1 || byHave.New.Objects != 1 || byHave.Local.Objects != byHave.Total.Objects-2 {
		t.Errorf("update: got %+v, want a patch, a new file, and the rest local", byHave)
	}
	want := map[string]wire.PlanFile{
		"bin/program": {Path: "bin/program", Bytes: int64(len(big) + 7), Patched: true},
		"etc/new":     {Path: "etc/new", Bytes: int64(len(fresh))},
	}
	for _, f := range byHave.Files {
		if f.Wire <= 0 || f.Wire > f.Bytes {
			t.Errorf("update: %+v", f)
		}
		f.Wire = 0
		if f != want[f.Path] {
			t.Errorf("update: got file %+v, want %+v", f, want[f.Path])
		}
	}
	if len(byHave.Files) != len(want) {
		t.Errorf("update: got files %+v", byHave.Files)
	}
	if n := bundle(wire.DeltaRequest{Ref: next.ref, Platform: platform, Have: have}); byHave.MostWire <= byHave.Wire || n > byHave.MostWire*11/10 || n < byHave.MostWire*9/10 {
		t.Errorf("update: between %d and %d bytes, without patches it has %d", byHave.Wire, byHave.MostWire, n)
	}
	sum := byHave.Metadata + byHave.New.Wire + byHave.Patched.Wire
	if d := byHave.Wire - sum; d < 0 || d > 100 { // parts are rounded, the end is no part
		t.Errorf("update: %d bytes, its parts have %d", byHave.Wire, sum)
	}

	byName, err := p.plan(t, wire.PlanRequest{DeltaRequest: wire.DeltaRequest{Ref: next.ref, Kinds: wire.PatchKinds}, From: []wire.From{{Ref: old.ref}}})
	if err != nil {
		t.Fatal(err)
	}
	byName.Patched.Wire, byHave.Patched.Wire = 0, 0 // the second time there may be a better patch
	if byName.Local != byHave.Local || byName.New != byHave.New || byName.Patched != byHave.Patched || byName.Strange != 0 || len(byName.Files) != 0 {
		t.Errorf("by name: got %+v, want what the layers gave: %+v", byName, byHave)
	}
}

// Images that a client may not have can neither be planned nor compared with.
func TestPlanIsAuthorized(t *testing.T) {
	reg := startRegistry(t, true)
	p := startProxyd(t, "[registries]\ncache_ttl = \"0s\"\n")
	a, b := reg.push(t, "secret/a", "1", someFiles(3, 20)), reg.push(t, "secret/b", "1", someFiles(4, 20))
	right := &wire.Credentials{Username: "user", Secret: password}
	wrong := &wire.Credentials{Username: "user", Secret: "hunter2"}
	ask := func(to, from *wire.Credentials) wire.PlanRequest {
		return wire.PlanRequest{
			DeltaRequest: wire.DeltaRequest{Ref: a.ref, Platform: platform, Credentials: to},
			From:         []wire.From{{Ref: b.ref, Credentials: from}},
		}
	}
	for range 2 { // the second time proxyd knows the images
		for _, c := range []*wire.Credentials{nil, wrong} {
			for _, req := range []wire.PlanRequest{ask(c, right), ask(right, c)} {
				if got := p.code(t, wire.RoutePlan, req); got != wire.CodeUnauthorized {
					t.Errorf("got %q, want %q", got, wire.CodeUnauthorized)
				}
			}
		}
		if got, err := p.plan(t, ask(right, right)); err != nil || got.Total.Objects == 0 {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	missing := ask(right, right)
	missing.From[0].Ref = reg.host + "/secret/b:none"
	if got := p.code(t, wire.RoutePlan, missing); got != wire.CodeNotFound {
		t.Errorf("comparing with nothing: got %q, want %q", got, wire.CodeNotFound)
	}
	if log, _ := os.ReadFile(p.log); slices.ContainsFunc([]string{"hunter2", password}, func(s string) bool { return bytes.Contains(log, []byte(s)) }) {
		t.Error("the log holds a password")
	}
}
