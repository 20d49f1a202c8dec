package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// TestMovedTag: the second worker that asks for a tag after it has moved finds the
// patches made.
func TestMovedTag(t *testing.T) {
	reg := startRegistry(t, false)
	p := startProxyd(t, "[registries]\ncache_ttl = \"0s\"\n")
	files := someFiles(1, 20)
	program := bytes.Repeat(files["bin/app"], 1+100_000/len(files["bin/app"]))
	for i := range program {
		program[i] ^= byte(i * i >> 7) // so that it does not compress to nothing
	}
	files["bin/app"] = program
	ref := reg.push(t, "lib/moving", "latest", files).ref
	pull := func() { p.pull(t, wire.DeltaRequest{Ref: ref, Platform: platform, HeaderOnly: true}) }
	pull()
	pull()
	if n := p.metric(t, `proxyd_patches_total{result="made"}`) + p.metric(t, "proxyd_patches_queued"); n != 0 {
		t.Fatalf("%v patches for a tag that has not moved", n)
	}
	files["bin/app"] = append([]byte("#!/bin/new\n"), program...)
	reg.push(t, "lib/moving", "latest", files)
	pull()
	deadline := time.After(time.Minute)
	for p.metric(t, `proxyd_patches_total{result="made"}`) < 1 {
		select {
		case <-deadline:
			t.Fatal("no patch is made")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if n := p.metric(t, "proxyd_patch_bytes"); n < 1 || n > float64(len(program))/20 {
		t.Errorf("the patch takes %v bytes for a program of %d", n, len(program))
	}
}
