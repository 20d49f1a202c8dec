package main

import (
	"path/filepath"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/internal/meta/metatest"
	"github.com/starlight-delta/starlight/proxyd/wire"
)

// TestTwoProxydsShareADatabase: what one has ingested the other serves at once.
func TestTwoProxydsShareADatabase(t *testing.T) {
	reg := startRegistry(t, false)
	args := []string{"--db", metatest.Postgres(t).Database(t), "--data-dir", filepath.Join(t.TempDir(), "shared")}
	one, two := startProxyd(t, "", args...), startProxyd(t, "", args...)
	img := reg.push(t, "lib/app", "1", someFiles(5, 500))

	first := one.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: platform})
	first.check(t, img.files)
	second := two.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: platform})
	second.check(t, img.files)
	if second.progress != 0 || second.retried {
		t.Error("the second proxyd has ingested the image again")
	}
	if second.header.Plan != first.header.Plan {
		t.Error("two proxyds plan the same request differently")
	}
}
