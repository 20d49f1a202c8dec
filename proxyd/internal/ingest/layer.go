package ingest

import (
	"context"
	"errors"
	"io"
	"math"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
	"github.com/starlight-delta/starlight/proxyd/internal/pack"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
	"github.com/starlight-delta/starlight/proxyd/wire/toc/fromtar"
)

// Layer reads a layer, compressed or not, to its end and writes its objects to
// w. Errors that lie in the layer are of type *wire.Error with CodeUnsupported;
// other ones come from r, w and ctx.
func Layer(ctx context.Context, r io.Reader, w io.Writer) (*toc.TOC, error) {
	pw, err := pack.NewWriter(w)
	if err != nil {
		return nil, err
	}
	var t *toc.TOC
	g, ctx := errgroup.WithContext(ctx)
	p := &packer{out: newCompressor(ctx, g, pw)}
	g.Go(background.Guard(func() (err error) {
		defer p.out.close()
		if t, err = fromtar.Layer(ctx, r, p); err == nil {
			p.flush()
		}
		return err
	}))
	if err := g.Wait(); err != nil {
		return nil, unsupported(err)
	}
	if err := pw.Finish(p.objects); err != nil {
		return nil, err
	}
	return t, nil
}

// unsupported tells errors of the layer from others.
func unsupported(err error) error {
	if f := (*fromtar.LayerError)(nil); errors.As(err, &f) {
		return &wire.Error{Code: wire.CodeUnsupported, Message: f.Error()}
	}
	return err
}

// packer brings the contents of a layer into its pack.
type packer struct {
	objects []pack.Object // aligned with those of the TOC
	out     *compressor

	job  *job   // being filled; may be nil
	room int    // bytes of the piece that Room was asked for
	next uint32 // number of the next frame
}

var _ fromtar.Contents = (*packer)(nil)

// Room implements fromtar.Contents: it is at the end of a job.
func (p *packer) Room(ctx context.Context, n int) ([]byte, error) {
	if p.job != nil && len(p.job.plain)+n > cap(p.job.plain) {
		p.flush()
	}
	if p.job == nil {
		j, err := p.out.next(ctx)
		if err != nil {
			return nil, err
		}
		p.job = j
	}
	k := len(p.job.plain)
	p.room = n
	return p.job.plain[k : k+n : k+n], nil
}

// Keep implements fromtar.Contents: the number is that of a frame.
func (p *packer) Keep() (uint32, error) {
	if p.next == math.MaxUint32 {
		return 0, errors.New("too many pieces")
	}
	p.job.plain = p.job.plain[:len(p.job.plain)+p.room]
	p.job.ends = append(p.job.ends, len(p.job.plain))
	p.next++
	return p.next - 1, nil
}

// Object implements fromtar.Contents.
func (p *packer) Object(size int64, frames []uint32) {
	p.objects = append(p.objects, pack.Object{Size: size, Frames: frames})
}

// flush passes the job on.
func (p *packer) flush() {
	if p.job != nil {
		p.out.submit(p.job)
		p.job = nil
	}
}
