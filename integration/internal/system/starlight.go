package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// Starlight is our containerd with a proxyd at the registry's side.
//
// proxyd has read both versions before, as it does when a version is pushed or
// pulled for the first time, and has had the time to compress each. Each node has a
// proxyd with a copy of that state, so that no measurement profits from the one before.
type Starlight struct {
	Binaries tools.Binaries
	// AtOnce: proxyd has had no time since it read them.
	AtOnce bool
	// Precomputed: another worker has made the same update before, and proxyd had
	// the time to compute patches for it.
	Precomputed bool
	// Traced is how many versions of an image were started once on another worker
	// that recorded and reported what they read: with 1, the next version inherits.
	Traced int
}

// Name implements [System].
func (s Starlight) Name() string {
	switch {
	case s.Precomputed:
		return "starlight-precomputed"
	case s.Traced > 1:
		return "starlight-retraced"
	case s.Traced > 0:
		return "starlight-traced"
	}
	return "starlight"
}

// state is where what proxyd has learned of an image is kept.
func (s Starlight) state(w *sandbox.World, image string) string {
	return filepath.Join(w.Dir, s.Name()+"-state", image)
}

// plain is the system whose state that of s begins with.
func (s Starlight) plain() Starlight { return Starlight{Binaries: s.Binaries, AtOnce: s.AtOnce} }

// Publish implements [System].
func (s Starlight) Publish(ctx context.Context, w *sandbox.World, versions []corpus.Image) ([]string, error) {
	refs, err := push(ctx, w, versions)
	if err != nil {
		return nil, err
	}
	ready := make([]corpus.Ready, 0, len(versions))
	for _, v := range versions {
		ready = append(ready, v.Ready)
	}
	return refs, s.Teach(ctx, w, versions[0].Name, refs, ready)
}

// Teach has proxyd read the versions of an image, over a link without limits, and
// keeps what it has then for the nodes to come. ready is needed for traces only.
func (s Starlight) Teach(ctx context.Context, w *sandbox.World, image string, refs []string, ready []corpus.Ready) error {
	conf := w.Link.Config()
	if err := w.Link.Set(wan.Config{}); err != nil {
		return err
	}
	return errors.Join(s.teach(ctx, w, image, refs, ready), w.Link.Set(conf))
}

func (s Starlight) teach(ctx context.Context, w *sandbox.World, image string, refs []string, ready []corpus.Ready) error {
	read := s.plain().state(w, image)
	if _, err := os.Stat(read); errors.Is(err, fs.ErrNotExist) {
		if err := s.learn(ctx, w, read, !s.AtOnce, func(p *sandbox.Proxyd) error {
			for _, ref := range refs { // each alone: proxyd sees no update
				if err := s.pull(ctx, w, p, []string{ref}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if s == s.plain() {
		return nil
	}
	if err := os.CopyFS(s.state(w, image), os.DirFS(read)); err != nil {
		return err
	}
	return s.learn(ctx, w, s.state(w, image), s.Precomputed, func(p *sandbox.Proxyd) error {
		if s.Precomputed {
			if err := s.pull(ctx, w, p, refs); err != nil {
				return err
			}
		}
		for i := range s.Traced {
			if err := s.trace(ctx, w, p, refs[i], ready[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// learn does something with a proxyd whose state is in dir, and lets it have the time to
// make of it what it can, or not.
func (s Starlight) learn(ctx context.Context, w *sandbox.World, dir string, rest bool, lesson func(*sandbox.Proxyd) error) error {
	p, err := w.StartProxyd(ctx, sandbox.ProxydConfig{Binary: s.Binaries.Proxyd, Dir: dir})
	if err != nil {
		return err
	}
	if err = lesson(p); err == nil && rest {
		err = Idle(ctx, p.Process)
	}
	return errors.Join(err, p.Stop())
}

// pull pulls images one after the other on a node of its own.
func (s Starlight) pull(ctx context.Context, w *sandbox.World, p *sandbox.Proxyd, refs []string) error {
	n, err := s.Worker(ctx, w, p.Address, unused(w, "teacher"))
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if err = n.Pull(ctx, ref); err == nil {
			_, err = n.Wait(ctx, ref)
		}
		if err != nil {
			break
		}
	}
	return errors.Join(err, n.Stop())
}

// trace starts an image once on a node of its own, and reports what was read.
func (s Starlight) trace(ctx context.Context, w *sandbox.World, p *sandbox.Proxyd, ref string, ready corpus.Ready) (err error) {
	n, err := s.Worker(ctx, w, p.Address, unused(w, "tracer"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Stop()) }()
	if err := n.Pull(ctx, ref); err != nil {
		return err
	}
	if _, err := n.Wait(ctx, ref); err != nil {
		return err
	}
	if _, err := n.Ctr(ctx, "starlight", "optimizer", "on"); err != nil {
		return err
	}
	c, err := n.Run(ctx, sandbox.Run{Ref: ref, ID: fmt.Sprintf("tracer-%d", os.Getpid()), Snapshotter: n.Snapshotter, Argv: ready.Argv})
	if err != nil {
		return err
	}
	if err := errors.Join(c.WaitReady(ctx, ready), c.Remove(ctx)); err != nil {
		return err
	}
	for _, command := range [][]string{{"optimizer", "off"}, {"report"}} {
		if _, err := n.Ctr(ctx, append([]string{"starlight"}, command...)...); err != nil {
			return err
		}
	}
	return nil
}

// unused is a name that no node of the world has had.
func unused(w *sandbox.World, kind string) string {
	for i := 0; ; i++ {
		name := kind + strconv.Itoa(i)
		if _, err := os.Lstat(filepath.Join(w.Dir, name)); errors.Is(err, fs.ErrNotExist) {
			return name
		}
	}
}

// Node implements [System].
func (s Starlight) Node(ctx context.Context, w *sandbox.World, image, name string) (*Node, error) {
	p, err := s.Proxyd(ctx, w, image, name)
	if err != nil {
		return nil, err
	}
	n, err := s.Worker(ctx, w, p.Address, name)
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	n.Others = map[string]*process.Process{"proxyd": p.Process}
	n.Far = []string{p.Dir}
	return n, nil
}

// Proxyd starts one with a copy of what was learned of an image.
func (s Starlight) Proxyd(ctx context.Context, w *sandbox.World, image, name string) (*sandbox.Proxyd, error) {
	dir := filepath.Join(w.Dir, name+"-proxyd")
	if err := os.CopyFS(dir, os.DirFS(s.state(w, image))); err != nil {
		return nil, err
	}
	return w.StartProxyd(ctx, sandbox.ProxydConfig{Binary: s.Binaries.Proxyd, Dir: dir})
}

// Worker starts a node that asks the proxyd at an address.
func (s Starlight) Worker(ctx context.Context, w *sandbox.World, address, name string) (*Node, error) {
	n, err := w.StartNode(ctx, sandbox.NodeConfig{Name: name, Binaries: s.Binaries, Proxies: []string{address}})
	if err != nil {
		return nil, err
	}
	return &Node{Node: n, Snapshotter: "starlight", Complete: func(ctx context.Context, ref string) (time.Time, error) {
		_, err := n.Ctr(ctx, "starlight", "wait", ref)
		return time.Now(), err
	}, Waited: func(ctx context.Context, ref string) (sum float64, err error) {
		out, err := n.Ctr(ctx, "starlight", "trace", "ls", "--json", ref)
		if err != nil {
			return 0, err
		}
		var traces []struct {
			Waited float64 `json:"secondsWaited"`
		}
		err = json.Unmarshal([]byte(out), &traces)
		for _, t := range traces {
			sum += t.Waited
		}
		return sum, err
	}}, nil
}

// Idle waits until a process does nothing any more: what it computes for later is
// done. It asks the kernel, as the process is a black box.
func Idle(ctx context.Context, p *process.Process) error {
	const (
		every = time.Second
		most  = 20 * time.Millisecond // of processor time in every; housekeeping takes less
		times = 3                     // in a row
	)
	t := time.NewTicker(every)
	defer t.Stop()
	last, err := process.CPU(p.PID())
	if err != nil {
		return err
	}
	for still := 0; still < times; {
		select {
		case <-t.C:
		case <-p.Done():
			return p.Wait(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
		now, err := process.CPU(p.PID())
		if err != nil {
			return err
		}
		waits, err := process.Busy(p.PID())
		if err != nil {
			return err
		}
		if still++; waits || now-last > most {
			still = 0
		}
		last = now
	}
	return nil
}
