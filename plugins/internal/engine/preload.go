package engine

import (
	"context"
	"sync/atomic"

	"github.com/containerd/log"
	"github.com/prometheus/procfs"
	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// preloaders read ahead at a time: small files cost latency, not bandwidth.
	preloaders = 8
	// preloadShare of the memory that is available may be filled.
	preloadShare = 4
)

// preload brings what a start of img is expected to read of what is local into the page
// cache, while the rest is still on its way: after an update nearly everything is local,
// and a node that has just booted has nothing of it in memory, where stock containerd
// leaves what it has unpacked. list is that of img.
func (e *Engine) preload(ctx context.Context, img *image, list []toc.Object, ranges []wire.Range) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		log.G(ctx).WithError(err).Debug("nothing is read ahead")
		return
	}
	mem, err := fs.Meminfo()
	if err != nil || mem.MemAvailableBytes == nil {
		log.G(ctx).WithError(err).Debug("nothing is read ahead")
		return
	}
	room := int64(*mem.MemAvailableBytes / preloadShare)
	var read, failed atomic.Int64
	var g errgroup.Group
	g.SetLimit(preloaders)
	for _, r := range ranges {
		o := list[r.Object]
		off := int64(r.First) * toc.PieceSize
		n := o.Size - off
		if r.Pieces > 0 {
			n = min(n, int64(r.Pieces)*toc.PieceSize)
		}
		if room -= n; room < 0 || ctx.Err() != nil {
			break
		}
		if !e.objects.Has(o.Digest) {
			continue // still on its way, with another bundle
		}
		g.Go(func() error {
			if err := e.objects.Cache(o.Digest, off, n); err != nil {
				failed.Add(1)
				return nil
			}
			read.Add(n)
			return nil
		})
	}
	_ = g.Wait() // none fails
	log.G(ctx).WithFields(log.Fields{"ref": e.sourceOf(img).ref, "bytes": read.Load(), "failed": failed.Load()}).Debug("local contents read ahead")
}
