// Package measure times what a user waits for: from the start of a pull until the
// application is of use, and counts what it cost on the link.
package measure

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// Snapshotters that are compared.
const (
	Overlayfs = "overlayfs"
	Starlight = "starlight"
)

// Start is one pull and start of an image.
type Start struct {
	Image       string `json:"image"`
	Tag         string `json:"tag"`
	Snapshotter string `json:"snapshotter"`
	// Pull, Ready and Done are seconds from the start of the pull: until ctr
	// returned, until the application was of use, and until all was local.
	Pull  float64 `json:"pullSeconds"`
	Ready float64 `json:"readySeconds"`
	Done  float64 `json:"doneSeconds"`
	// Bytes on the link down to the node until everything was local, and until
	// the application was ready.
	Bytes      int64 `json:"bytes"`
	ReadyBytes int64 `json:"readyBytes"`
	// PullTrips and Trips are round trips one after the other, of the pull alone
	// and until ready.
	PullTrips int64 `json:"pullRoundTrips"`
	Trips     int64 `json:"roundTrips"`
}

// Stage of a start.
type Stage struct {
	Name  string // "pulling", "starting", "the rest"
	Bytes int64
	Since time.Duration
}

// Once pulls and starts an image cold, and removes the container. report, if not
// nil, is called about five times a second.
func Once(ctx context.Context, w *sandbox.World, n *sandbox.Node, r sandbox.Run, ready corpus.Ready, report func(Stage)) (s Start, err error) {
	s.Snapshotter = r.Snapshotter
	if err := sandbox.DropCaches(); err != nil {
		return s, err
	}
	if err := w.Link.Reset(); err != nil {
		return s, err
	}
	start := time.Now()
	watch := newWatch(w.Link, start, report)
	defer watch.stop()

	watch.stage("pulling")
	if err := n.Pull(ctx, r.Ref, "--snapshotter", r.Snapshotter); err != nil {
		return s, err
	}
	s.Pull = time.Since(start).Seconds()
	pulled, err := w.Link.Counters()
	if err != nil {
		return s, err
	}
	s.PullTrips = pulled.RoundTrips

	watch.stage("starting")
	c, err := n.Run(ctx, r)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, c.Remove(ctx)) }()
	if err := c.WaitReady(ctx, ready); err != nil {
		return s, fmt.Errorf("%s with %s: %w", r.Ref, r.Snapshotter, err)
	}
	s.Ready = time.Since(start).Seconds()
	at, err := w.Link.Counters()
	if err != nil {
		return s, err
	}
	s.ReadyBytes, s.Trips = at.Down.Bytes, at.RoundTrips

	if r.Snapshotter == Starlight {
		watch.stage("the rest")
		if _, err := n.Ctr(ctx, "starlight", "wait", r.Ref); err != nil {
			return s, err
		}
	}
	s.Done = time.Since(start).Seconds()
	end, err := w.Link.Counters()
	s.Bytes = end.Down.Bytes
	return s, err
}

// watch reports on a start while it goes on.
type watch struct {
	names chan string
	done  chan struct{}
}

func newWatch(l *wan.Link, start time.Time, report func(Stage)) *watch {
	w := &watch{names: make(chan string), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		t := time.NewTicker(200 * time.Millisecond)
		defer t.Stop()
		name, open := "", true
		for open {
			select {
			case name, open = <-w.names:
			case <-t.C:
			}
			if report == nil || name == "" {
				continue
			}
			if c, err := l.Counters(); err == nil { // only a display
				report(Stage{name, c.Down.Bytes, time.Since(start)})
			}
		}
	}()
	return w
}

func (w *watch) stage(name string) { w.names <- name }

func (w *watch) stop() {
	close(w.names)
	<-w.done
}

// Warm has proxyd ingest images, by pulls of a node that is thrown away, without
// the limits of the link: what is measured is the second pull of the world, not
// the first.
func Warm(ctx context.Context, w *sandbox.World, c sandbox.NodeConfig, refs ...string) error {
	conf := w.Link.Config()
	if err := w.Link.Set(wan.Config{}); err != nil {
		return err
	}
	c.Name += "-warm"
	n, err := w.StartNode(ctx, c)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if err := n.Pull(ctx, ref, "--snapshotter", Starlight); err != nil {
			return err
		}
		if _, err := n.Ctr(ctx, "starlight", "wait", ref); err != nil {
			return err
		}
	}
	if err := n.Close(); err != nil {
		return err
	}
	return w.Link.Set(conf)
}
