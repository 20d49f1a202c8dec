package index

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Repository is one to look at.
type Repository struct {
	Name string   // "host/repo"
	Tags []string // patterns as of path.Match; none means all
}

func (r Repository) wants(tag string) bool {
	for _, p := range r.Tags {
		if ok, err := path.Match(p, tag); err == nil && ok {
			return true
		}
	}
	return len(r.Tags) == 0
}

// poll looks at the repositories at once and at each interval.
func (x *Indexer) poll(ctx context.Context) {
	tick := time.NewTicker(x.cfg.Interval)
	defer tick.Stop()
	for {
		for _, r := range x.cfg.Poll {
			if err := x.look(ctx, r); err != nil && ctx.Err() == nil {
				x.cfg.Log.WarnContext(ctx, "tags not listed", "repository", r.Name, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look has the tags of a repository indexed. One that has not moved costs a HEAD.
func (x *Indexer) look(ctx context.Context, r Repository) error {
	host, _, _ := strings.Cut(r.Name, "/")
	var creds *wire.Credentials
	if x.cfg.Credentials != nil {
		var err error
		if creds, err = x.cfg.Credentials(ctx, host); err != nil {
			return err
		}
	}
	tags, err := x.cfg.Registry.Tags(ctx, r.Name, creds)
	if err != nil {
		return err
	}
	for _, tag := range tags {
		if r.wants(tag) && !x.Add(r.Name+":"+tag, toc.Digest{}) {
			return nil // the next look goes on
		}
	}
	return nil
}
