package engine

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// A plan is asked for with what a pull would be asked for with; images to compare with
// take the place of what the node has, and no registry sees credentials for another.
func TestPlan(t *testing.T) {
	p := newFakeProxy(t)
	first, second := newTestImage(t, manyFiles(1, 5)), newTestImage(t, manyFiles(2, 5))
	p.add("registry.test/app:1", first)
	p.add("registry.test/app:2", second)
	down := newFakeProxy(t)
	e := openEngine(t, t.TempDir(), down, p)
	down.Close()
	pull(t, e, "registry.test/app:1")
	wait(t, e, "registry.test/app:1")

	creds := &wire.Credentials{Username: "alice", Secret: "s"}
	told := 0
	report := func(wire.Progress) error { told++; return nil }
	plan, address, err := e.Plan(t.Context(), PlanRequest{Ref: "registry.test/app:2", Platform: "linux/amd64", Credentials: creds, Top: 1000}, report)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Manifest != second.digest() || plan.Wire != 7 || address != p.URL || told != 1 {
		t.Errorf("got %+v of %s, progress %d times", plan, address, told)
	}
	if _, _, err := e.Plan(t.Context(), PlanRequest{
		Ref: "registry.test/app:2", Platform: "linux/amd64", Credentials: creds,
		From: []string{"registry.test/app:1", "other.test/app:1@" + "sha256:00"},
	}, report); err != nil {
		t.Fatal(err)
	}
	base := wire.DeltaRequest{Ref: "registry.test/app:2", Platform: "linux/amd64", Credentials: creds, Kinds: kinds}
	withHave := base
	withHave.Have = []wire.Have{{DiffID: first.header.Layers[0].DiffID}}
	want := []wire.PlanRequest{
		{DeltaRequest: withHave, Top: wire.MaxTop},
		{DeltaRequest: base, From: []wire.From{{Ref: "registry.test/app:1", Credentials: creds}, {Ref: "other.test/app@sha256:00"}}},
	}
	if d := cmp.Diff(want, p.planned); d != "" {
		t.Error(d)
	}
	for _, ref := range []string{"registry.test/none:1", "elsewhere/x:1"} {
		if _, _, err := e.Plan(t.Context(), PlanRequest{Ref: ref, Platform: "linux/amd64"}, report); !errdefs.IsNotFound(err) {
			t.Errorf("%s: got %v, want not found", ref, err)
		}
	}
}
