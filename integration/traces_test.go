package integration

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/weird"
)

// traced is what "ctr-starlight trace show --json" tells.
type traced struct {
	ID      string  `json:"id"`
	Image   string  `json:"image"`
	Group   string  `json:"group"`
	Partial bool    `json:"partial"`
	Objects int     `json:"objectsRead"`
	Bytes   int64   `json:"bytesRead"`
	Waited  float64 `json:"secondsWaited"`
	Read    []struct {
		Path   string     `json:"path"`
		Ranges [][2]int64 `json:"ranges"`
	} `json:"read"`
}

func (n *node) traces(ref string) []traced {
	n.t.Helper()
	out := n.ctr("starlight", "trace", "ls", "--json", ref)
	var all []traced
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		n.t.Fatalf("traces are not JSON: %v: %s", err, out)
	}
	return all
}

// start is what a fresh node sees of an image until its application is ready.
type start struct {
	bytes  int64 // over the link
	took   time.Duration
	waited float64 // of readers, seconds
}

// fresh pulls and starts an image on a node that has nothing.
func (w *world) fresh(name string, p *sandbox.Proxyd, ref string, r corpus.Ready) (s start) {
	w.t.Helper()
	n := w.node(sandbox.NodeConfig{Name: name, Proxies: []string{p.Address}})
	w.count()
	began := time.Now()
	n.pull(ref)
	c, err := n.Run(w.t.Context(), sandbox.Run{Ref: ref, ID: "app", Snapshotter: starlight, Argv: r.Argv})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.WaitReady(w.t.Context(), r); err != nil {
		w.t.Fatal(err)
	}
	s.took, s.bytes = time.Since(began), w.counters().Down.Bytes
	n.wait(ref)
	for _, tr := range n.traces(ref) {
		if !tr.Partial {
			w.t.Errorf("%s was traced as a whole with the optimizer off", name)
		}
		s.waited += tr.Waited
	}
	if err := c.Remove(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// A start is traced on one node and reported; the next fresh node gets what it reads
// first, and the next version begins with the same.
func TestTracesLeadTheNextPull(t *testing.T) {
	w, p, teacher := accelerated(t, lan)
	im := image(t, "redis", "v1")
	v1, v2 := w.push("redis", "v1"), w.push("redis", "v2")
	w.warm(p, v1, v2)

	link := slow
	link.Down = 40
	if err := w.Link.Set(link); err != nil {
		t.Fatal(err)
	}
	guessed, guessed2 := w.fresh("guessed", p, v1, im.Ready), w.fresh("guessed2", p, v2, image(t, "redis", "v2").Ready)
	if err := w.Link.Set(lan); err != nil {
		t.Fatal(err)
	}

	teacher.pull(v1)
	teacher.wait(v1)
	teacher.ctr("starlight", "optimizer", "on", "--group", "cache", "--image", v1)
	c, err := teacher.Run(t.Context(), sandbox.Run{Ref: v1, ID: "app", Snapshotter: starlight, Argv: im.Ready.Argv})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(t.Context(), im.Ready); err != nil {
		t.Fatal(err)
	}
	// A traced container outlives containerd like any other.
	teacher.Kill()
	if err := teacher.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := teacher.ctr("tasks", "exec", "--exec-id", "x", "app", "sh", "-c", "cat /etc/* 2>/dev/null | wc -c"); strings.TrimSpace(out) == "0" {
		t.Error("the traced container reads nothing after a restart of containerd")
	}
	// Its ctr has ended with containerd.
	teacher.ctr("tasks", "delete", "--force", "app")
	teacher.ctr("containers", "delete", "app")
	teacher.runReady(v1, "again", starlight, im.Ready)
	teacher.ctr("starlight", "optimizer", "off") // ends the traces under way
	all := teacher.traces(v1)
	full := slices.DeleteFunc(all, func(tr traced) bool { return tr.Partial })
	if len(full) != 1 || full[0].Group != "cache" || full[0].Objects < 5 {
		t.Fatalf("got traces %+v, want one of the group web with all that was read", all)
	}
	var shown traced
	if err := json.Unmarshal([]byte(teacher.ctr("starlight", "trace", "show", "--json", full[0].ID)), &shown); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(shown.Read, func(o struct {
		Path   string     `json:"path"`
		Ranges [][2]int64 `json:"ranges"`
	}) bool {
		return strings.HasPrefix(o.Path, "/usr/bin/redis-") && len(o.Ranges) > 0 // it has several names
	}) {
		t.Error("the trace does not show that the program was read")
	}
	if out := teacher.ctr("starlight", "report"); !strings.Contains(out, "1") {
		t.Errorf("report says %q", out)
	}
	if left := teacher.traces(""); len(left) != 0 {
		t.Errorf("after the report %d traces are left", len(left))
	}
	teacher.runReady(v1, "off", starlight, im.Ready)
	if left := teacher.traces(""); len(left) != 0 {
		t.Errorf("with the optimizer off %d starts were traced", len(left))
	}

	if err := w.Link.Set(link); err != nil {
		t.Fatal(err)
	}
	learned, learned2 := w.fresh("learned", p, v1, im.Ready), w.fresh("learned2", p, v2, image(t, "redis", "v2").Ready)
	t.Logf("read %d bytes; guessed %+v, learned %+v; next version guessed %+v, learned %+v", shown.Bytes, guessed, learned, guessed2, learned2)
	// The same start, with the same bytes in flight when it is ready: what comes
	// by a better order is less.
	if learned.bytes > guessed.bytes*11/10 || learned2.bytes > guessed2.bytes*11/10 {
		t.Errorf("with traces ready after %d and %d bytes, without after %d and %d", learned.bytes, learned2.bytes, guessed.bytes, guessed2.bytes)
	}
}

// A range that readers waited for on one node is what the next one gets first: of a large
// file not its beginning, and not the whole of it.
func TestRangesThatWereWaitedForComeFirst(t *testing.T) {
	const (
		piece, pieces = 1 << 20, 24
		wanted        = 20 // piece
	)
	w := newWorld(t, lan)
	p := w.proxyd()
	big := random(1, "big", 1, pieces*piece)
	ref := w.pushWeird(weird.Files("ranges", big, random(2, "small", 20, 1000)))
	w.warm(p, ref)
	link := slow
	link.Down = 20
	if err := w.Link.Set(link); err != nil {
		t.Fatal(err)
	}
	name := slices.Collect(maps.Keys(big))[0]
	read := func(dir string) {
		t.Helper()
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		b := make([]byte, 4096)
		if _, err := f.ReadAt(b, wanted*piece+1000); err != nil || string(b) != big[name][wanted*piece+1000:][:len(b)] {
			t.Errorf("wrong bytes, or %v", err)
		}
	}
	first := w.node(sandbox.NodeConfig{Name: "first", Proxies: []string{p.Address}})
	w.count()
	first.pull(ref)
	read(first.mount(t, ref, starlight))
	if got := w.counters().Down.Bytes; got > pieces/2*piece {
		t.Errorf("a reader of the end of a file got it after %d bytes", got)
	}
	if err := w.Link.Set(lan); err != nil {
		t.Fatal(err)
	}
	first.wait(ref)
	if out := first.ctr("starlight", "report"); !strings.Contains(out, "1") {
		t.Fatalf("report says %q", out)
	}

	if err := w.Link.Set(link); err != nil {
		t.Fatal(err)
	}
	second := w.node(sandbox.NodeConfig{Name: "second", Proxies: []string{p.Address}})
	w.count()
	second.pull(ref)
	dir := second.mount(t, ref, starlight)
	for {
		c, err := w.Link.Counters()
		if err != nil {
			t.Fatal(err)
		}
		if c.Down.Bytes > 4*piece {
			break
		}
		time.Sleep(time.Millisecond)
	}
	// Nothing can be asked for any more.
	cut := link
	cut.Cut = true
	if err := w.Link.Set(cut); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		read(dir)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("what was waited for has not come first")
	}
	if s := second.status1(ref); s.Complete || s.Percent > 80 {
		t.Errorf("got %+v, want most of it on the way", s)
	}
	if err := w.Link.Set(lan); err != nil {
		t.Fatal(err)
	}
	<-done
	second.wait(ref)
}
