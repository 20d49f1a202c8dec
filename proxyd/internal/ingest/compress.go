package ingest

import (
	"context"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/pack"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// job is a buffer of pieces on their way into the pack.
type job struct {
	plain []byte // capacity: toc.PieceSize
	ends  []int  // of the pieces in plain
	enc   []byte
	encs  []encoded
	done  chan struct{} // receives one element when enc is there
}

type encoded struct {
	end        int // in enc
	compressed bool
}

// compressor compresses pieces, several at a time, and writes them in the order in
// which they came.
type compressor struct {
	w     *pack.Writer
	free  chan *job
	work  chan *job // to the workers, in any order
	order chan *job // to the pack
}

// newCompressor starts the workers in g.
func newCompressor(ctx context.Context, g *errgroup.Group, w *pack.Writer) *compressor {
	workers := runtime.GOMAXPROCS(0)
	jobs := workers + 2
	c := &compressor{w: w, free: make(chan *job, jobs), work: make(chan *job, jobs), order: make(chan *job, jobs)}
	for range jobs {
		c.free <- &job{done: make(chan struct{}, 1)}
	}
	for range workers {
		g.Go(func() error {
			for j := range c.work {
				j.encode()
			}
			return nil
		})
	}
	g.Go(func() error { return c.write(ctx) })
	return c
}

// next returns an empty job.
func (c *compressor) next(ctx context.Context) (*job, error) {
	select {
	case j := <-c.free:
		if j.plain == nil {
			j.plain = make([]byte, 0, toc.PieceSize)
		}
		j.plain, j.ends = j.plain[:0], j.ends[:0]
		return j, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// submit passes a job on. Both channels have room for all jobs.
func (c *compressor) submit(j *job) {
	c.order <- j
	c.work <- j
}

// close tells that nothing more is coming.
func (c *compressor) close() {
	close(c.work)
	close(c.order)
}

// write writes the frames of all jobs.
func (c *compressor) write(ctx context.Context) error {
	for j := range c.order {
		select {
		case <-j.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		start := 0
		for _, e := range j.encs {
			if err := c.w.Frame(j.enc[start:e.end], e.compressed); err != nil {
				return err
			}
			start = e.end
		}
		c.free <- j
	}
	return ctx.Err()
}

// encode compresses the pieces of a job.
func (j *job) encode() {
	j.enc, j.encs = j.enc[:0], j.encs[:0]
	start := 0
	for _, end := range j.ends {
		var compressed bool
		j.enc, compressed = pack.Encode(j.enc, j.plain[start:end])
		j.encs = append(j.encs, encoded{len(j.enc), compressed})
		start = end
	}
	j.done <- struct{}{}
}
