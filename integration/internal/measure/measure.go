// Package measure times what a user waits for: from the start of a pull until the
// application is of use, and counts what it cost on the link and on the machines.
package measure

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/system"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// Start is one pull and start of an image.
type Start struct {
	// Pull, Ready and Done are seconds from the start of the pull: until ctr
	// returned, until the application was of use, and until all was local.
	Pull  float64 `json:"pullSeconds"`
	Ready float64 `json:"readySeconds"`
	Done  float64 `json:"doneSeconds"`
	// Waited is how many seconds readers waited for contents, those that waited at
	// the same time added up; zero if the system does not tell.
	Waited float64 `json:"waitedSeconds,omitempty"`
	// Bytes on the link down to the node until everything was local, and until
	// the application was ready; Up is the other direction.
	Bytes      int64 `json:"bytes"`
	ReadyBytes int64 `json:"readyBytes"`
	Up         int64 `json:"upBytes"`
	// PullTrips and Trips are round trips one after the other, of the pull alone
	// and until ready; Connections are those that the node opened until then.
	PullTrips   int64 `json:"pullRoundTrips"`
	Trips       int64 `json:"roundTrips"`
	Connections int64 `json:"connections"`
	// Processes that worked for it, until everything was local.
	Processes []Process `json:"processes"`
	// Disk is what the node takes afterwards, earlier versions included.
	Disk int64 `json:"diskBytes"`
	// Arrived are the bytes on the link over time.
	Arrived []Point `json:"arrived,omitempty"`
}

// Point of a curve.
type Point struct {
	At    float64 `json:"at"` // seconds from the start of the pull
	Bytes int64   `json:"bytes"`
}

// Stage of a start.
type Stage struct {
	Name  string // "pulling", "starting", "the rest"
	Bytes int64
	Since time.Duration
}

// Subject is what to start and how.
type Subject struct {
	Node  *system.Node
	Ref   string
	ID    string // of the container
	Ready corpus.Ready
	// Report, if not nil, is called about five times a second.
	Report func(Stage)
}

// Once pulls and starts an image cold, and removes the container.
func Once(ctx context.Context, l *wan.Link, s Subject) (m Start, err error) {
	if err := l.Quiet(ctx); err != nil {
		return m, err
	}
	if err := sandbox.DropCaches(); err != nil {
		return m, err
	}
	usage, err := newUsage(s.Node)
	if err != nil {
		return m, err
	}
	if err := l.Reset(); err != nil {
		return m, err
	}
	watch := newWatch(l, s.Report)
	defer watch.stop()

	watch.stage("pulling")
	if err := s.Node.Pull(ctx, s.Ref); err != nil {
		return m, err
	}
	m.Pull = watch.seconds()
	pulled, err := l.Counters()
	if err != nil {
		return m, err
	}
	m.PullTrips = pulled.RoundTrips

	watch.stage("starting")
	c, err := s.Node.Run(ctx, sandbox.Run{Ref: s.Ref, ID: s.ID, Snapshotter: s.Node.Snapshotter, Argv: s.Ready.Argv})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, c.Remove(ctx)) }()
	if err := c.WaitReady(ctx, s.Ready); err != nil {
		return m, fmt.Errorf("start %s: %w", s.Ref, err)
	}
	m.Ready = watch.seconds()
	at, err := l.Counters()
	if err != nil {
		return m, err
	}
	m.ReadyBytes, m.Trips, m.Connections = at.Down.Bytes, at.RoundTrips, at.Up.Connections

	watch.stage("the rest")
	done, err := s.Node.Wait(ctx, s.Ref)
	switch {
	case err != nil:
		return m, err
	case done.IsZero():
		m.Done = m.Pull
	default:
		m.Done = done.Sub(watch.start).Seconds()
	}
	if s.Node.Waited != nil {
		if m.Waited, err = s.Node.Waited(ctx, s.Ref); err != nil {
			return m, err
		}
	}
	end, err := l.Counters()
	if err != nil {
		return m, err
	}
	m.Bytes, m.Up = end.Down.Bytes, end.Up.Bytes
	if m.Processes, err = usage.since(); err != nil {
		return m, err
	}
	if m.Disk, err = s.Node.Disk(); err != nil {
		return m, err
	}
	m.Arrived = watch.stop()
	return m, nil
}
