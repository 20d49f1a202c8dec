package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
)

// The power is cut at some instant of a pull: what is there when the node is back is
// right, and the rest comes.
func TestPowerCut(t *testing.T) {
	cuts := []time.Duration{200 * time.Millisecond, 900 * time.Millisecond}
	if !testing.Short() {
		cuts = append(cuts, 0, 400*time.Millisecond, 1500*time.Millisecond, 3*time.Second, 6*time.Second)
	}
	w := newWorld(t, slow)
	p := w.proxyd()
	ref, next := w.push("redis", "v1"), w.push("redis", "v2")
	w.warm(p, ref, next)
	disk, err := w.NewDisk("node", 1024)
	if err != nil {
		t.Skip("no file system to cut the power of:", err)
	}
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}})
	n.pull(ref)
	n.wait(ref) // durable from here on
	for _, after := range cuts {
		w.dribble()
		pulled := make(chan struct{})
		go func() {
			defer close(pulled)
			_ = n.Pull(t.Context(), next, "--snapshotter", starlight) // the cut may be faster
		}()
		time.Sleep(after) // the instant of the cut is what varies
		if err := n.PowerCut(disk); err != nil {
			t.Fatal(err)
		}
		<-pulled
		w.fast()
		n.start()
		if all, wrong := n.wrongObjects(); all == 0 || wrong > 0 {
			t.Fatalf("after a power cut at %v: %d of %d objects are wrong", after, wrong, all)
		}
		n.clean()
		if s := n.status1(ref); !s.Complete {
			t.Errorf("after a power cut at %v: what was complete is not: %+v", after, s)
		}
		if after != cuts[len(cuts)-1] {
			continue
		}
		n.pull(next)
		n.wait(next)
		n.readAll(next, "fresh")
		n.sum("fresh")
		if _, wrong := n.wrongObjects(); wrong > 0 {
			t.Errorf("%d objects are wrong in the end", wrong)
		}
	}
}

// containerd is killed at random instants of a pull, again and again. What is on the
// disk is right each time, and in the end everything is there.
func TestKilledAgainAndAgain(t *testing.T) {
	times := 4
	if !testing.Short() {
		times = 30
	}
	w, p, n := accelerated(t, slow)
	ref := w.push("redis", "v1")
	w.warm(p, ref)
	link := slow
	link.Down = 40
	if err := w.Link.Set(link); err != nil {
		t.Fatal(err)
	}
	for i := range times {
		pulled := make(chan struct{})
		go func() {
			defer close(pulled)
			_ = n.Pull(t.Context(), ref, "--snapshotter", starlight) // the kill may be faster
		}()
		time.Sleep(time.Duration(i*137%1200) * time.Millisecond) // the instant is what varies
		n.Kill()
		if pids, err := n.LazyProcesses(); err == nil && len(pids) > 0 && i%3 == 2 {
			n.killLazy()
		}
		<-pulled
		if _, wrong := n.wrongObjects(); wrong > 0 {
			t.Fatalf("after kill %d: %d objects are wrong", i, wrong)
		}
		n.start()
		n.clean()
	}
	w.fast()
	n.pull(ref)
	n.wait(ref)
	n.wrongObjects()
	n.readAll(ref, "fresh")
	n.sum("fresh")
	n.unmounted(ref)
}

// The disk is full in the middle of a pull: the status says so, nothing is corrupt, and
// when the image is removed its space is free for another.
func TestDiskIsFull(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	large, small := w.push("redis", "v1"), w.push("tinyhttp", "v1")
	w.warm(p, large, small)
	disk, err := w.NewDisk("node", 64)
	if err != nil {
		t.Skip("no file system to fill:", err)
	}
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}})
	before, err := disk.Free()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Pull(t.Context(), large, "--snapshotter", starlight); err != nil {
		if !strings.Contains(err.Error(), "no space") {
			t.Fatalf("got %v, want a word of the full disk", err)
		}
	} else {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for !strings.Contains(n.status1(large).Reason, "no space left") {
			if ctx.Err() != nil {
				t.Fatalf("the status does not tell of the full disk: %+v", n.status1(large))
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	n.wrongObjects()
	if out, err := n.Ctr(t.Context(), "image", "rm", "--sync", large); err != nil {
		t.Log(out, err) // it may not have got as far
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for free := int64(0); free < before*8/10; time.Sleep(100 * time.Millisecond) {
		if free, err = disk.Free(); err != nil || ctx.Err() != nil {
			t.Fatalf("%d bytes are free after the removal, %d were before: %v", free, before, err)
		}
	}
	n.pull(small)
	n.wait(small)
	n.runReady(small, "app", starlight, image(t, "tinyhttp", "v1").Ready)
}

// A pull that the full disk has stopped goes on by itself when there is room.
func TestDiskHasRoomAgain(t *testing.T) {
	w := newWorld(t, lan)
	p := w.proxyd()
	ref := w.push("redis", "v1")
	w.ingest(p, ref)
	disk, err := w.NewDisk("node", 256)
	if err != nil {
		t.Skip("no file system to fill:", err)
	}
	n := w.node(sandbox.NodeConfig{Proxies: []string{p.Address}})
	free, err := disk.Free()
	if err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(n.Dir, "filler")
	if _, err := process.Run(nil, exec.CommandContext(t.Context(), "fallocate", "-l", strconv.FormatInt(free-40<<20, 10), filler)); err != nil {
		t.Fatal(err)
	}
	w.dribble()
	n.pull(ref)
	w.fast()
	eventually(t, time.Minute, func() error {
		if s := n.status1(ref); !strings.Contains(s.Reason, "no space left") {
			return fmt.Errorf("the status does not tell of the full disk: %+v", s)
		}
		return nil
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	n.wait(ref)
	n.wrongObjects()
	n.clean()
	n.readAll(ref, "app")
	n.sum("app")
}
