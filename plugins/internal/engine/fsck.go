package engine

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/starlight-delta/starlight/plugins/internal/erofsimg"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Kinds of problems that Fsck finds.
const (
	ProblemImage  = "image"  // the record of an image does not fit what is there
	ProblemTOC    = "toc"    // a TOC is not what was received
	ProblemTree   = "tree"   // a metadata image is not what its TOCs give
	ProblemObject = "object" // a content is not what its name says
	ProblemOrphan = "orphan" // a file belongs to nothing
)

// Problem is something that Fsck found wrong.
type Problem struct {
	Kind     string
	Name     string // digest, chain ID, or path below the root
	Detail   string // what is wrong, and what to do next unless it is repaired
	Repaired bool
}

// FsckProgress is reported for each problem, and now and then in between.
type FsckProgress struct {
	Problem     *Problem // nil: nothing but progress
	Stage       string   // StageTOCs, StageTrees, StageObjects, StageOrphans
	Done, Total int64    // bytes of objects that were hashed, and are to be
}

// Stages of Fsck.
const (
	StageTOCs    = "tocs"
	StageTrees   = "trees"
	StageObjects = "objects"
	StageOrphans = "orphans"
)

// FsckSummary is what Fsck has looked at.
type FsckSummary struct {
	Images, Layers, Trees, Objects int64
	Bytes                          int64 // of objects
	Problems, Repaired             int64
}

// fsck is one run.
type fsck struct {
	e      *Engine
	repair bool
	report func(FsckProgress) error

	mu    sync.Mutex // guards the following
	sum   FsckSummary
	at    FsckProgress
	last  time.Time
	ended error // of report
}

// Fsck checks all that is on the disk, by hashing it, while pulls and containers go
// on: TOCs against the state, trees against TOCs, objects against their names, images
// that are marked complete against the objects, and whether anything belongs to
// nothing. With repair, what is wrong is removed and comes anew from a proxy or the
// registry. report is called by one goroutine at a time; its error ends the run.
func (e *Engine) Fsck(ctx context.Context, repair bool, report func(FsckProgress) error) (FsckSummary, error) {
	f := &fsck{e: e, repair: repair, report: report}
	for _, stage := range []func(context.Context) error{f.tocs, f.trees, f.objects, f.images, f.orphans} {
		if err := stage(ctx); err != nil {
			return f.sum, err
		}
	}
	return f.sum, f.tell(nil)
}

// stage begins a stage.
func (f *fsck) stage(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at.Stage = name
}

// tell reports a problem, or progress if it is time to. f.mu is not held.
func (f *fsck) tell(p *Problem) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended != nil {
		return f.ended
	}
	if p != nil {
		if f.sum.Problems++; p.Repaired {
			f.sum.Repaired++
		}
	} else if time.Since(f.last) < reportInterval && f.at.Done < f.at.Total {
		return nil
	}
	f.last = time.Now()
	now := f.at
	now.Problem = p
	f.ended = f.report(now)
	return f.ended
}

// found reports a problem after fix, which may be nil: that cannot be mended here.
func (f *fsck) found(kind, name, detail string, fix func() error) error {
	p := &Problem{Kind: kind, Name: name, Detail: detail}
	if f.repair && fix != nil {
		if err := fix(); err != nil {
			p.Detail += "; " + err.Error()
		} else {
			p.Repaired = true
		}
	}
	return f.tell(p)
}

// tocs compares the TOC files with what was received.
func (f *fsck) tocs(ctx context.Context) error {
	f.stage(StageTOCs)
	f.e.mu.Lock()
	layers := make([]*layer, 0, len(f.e.layers))
	for _, l := range f.e.layers {
		layers = append(layers, l)
	}
	f.e.mu.Unlock()
	for _, l := range layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		f.sum.Layers++
		b, err := os.ReadFile(f.e.tocPath(l.diffID))
		if err == nil && sha256.Sum256(b) == l.encoded || !f.e.knows(l) {
			continue
		}
		detail := "is not the table of contents that was received"
		if err != nil {
			detail = err.Error()
		}
		// With a new pull it comes anew: the next request says that we have it not.
		err = f.found(ProblemTOC, l.diffID.String(), detail+": pull the images of this layer again", func() error { return f.e.forgetLayer(l) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) knows(l *layer) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.layers[l.diffID] == l
}

// forgetLayer makes the next request ask for the TOC of l.
func (e *Engine) forgetLayer(l *layer) error {
	e.mu.Lock()
	if e.layers[l.diffID] == l {
		delete(e.layers, l.diffID)
	}
	e.mu.Unlock()
	return removeAll(e.tocPath(l.diffID))
}

// trees compares the metadata images with what their TOCs give.
func (f *fsck) trees(ctx context.Context) error {
	f.stage(StageTrees)
	f.e.mu.Lock()
	chains := make([]*chain, 0, len(f.e.chains))
	for _, c := range f.e.chains {
		chains = append(chains, c)
	}
	f.e.mu.Unlock()
	for _, c := range chains {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f.tree(c); err != nil {
			return err
		}
	}
	return nil
}

func (f *fsck) tree(c *chain) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	path := f.e.treePath(c.id)
	if _, err := os.Stat(path); os.IsNotExist(err) {
		return nil // made when it is needed
	}
	f.sum.Trees++
	t, err := f.e.mergeTOCs(f.e.stack(c))
	if err != nil {
		return nil //nolint:nilerr // reported with the TOCs
	}
	tmp, err := os.CreateTemp(f.e.treeDir(), tmpPattern)
	if err != nil {
		return err
	}
	defer func() {
		_ = tmp.Close() // thrown away
		_ = os.Remove(tmp.Name())
	}()
	if err := erofsimg.Write(tmp, t, f.e.stacking); err != nil {
		return err
	}
	want, err := hashFile(tmp.Name())
	if err != nil {
		return err
	}
	if got, err := hashFile(path); err == nil && got == want {
		return nil
	}
	// A mounted one goes on being what it is until its containers end.
	return f.found(ProblemTree, c.id.String(), "is not what its tables of contents give", func() error { return f.e.dropTreeLocked(c) })
}

func hashFile(path string) (d toc.Digest, err error) {
	r, err := os.Open(path)
	if err != nil {
		return d, err
	}
	defer r.Close() // read only
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return d, err
	}
	return toc.Digest(h.Sum(nil)), nil
}

// objects hashes everything.
func (f *fsck) objects(ctx context.Context) error {
	f.stage(StageObjects)
	total, n := f.e.objects.Usage()
	f.mu.Lock()
	f.at.Total, f.sum.Objects = total, n
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex // guards bad
	var bad []toc.Digest
	err := f.e.objects.Check(ctx, func(n int64) {
		f.mu.Lock()
		f.at.Done += n
		f.at.Total = max(f.at.Total, f.at.Done)
		f.sum.Bytes += n
		f.mu.Unlock()
		if f.tell(nil) != nil {
			cancel()
		}
	}, func(d toc.Digest) {
		mu.Lock()
		defer mu.Unlock()
		bad = append(bad, d)
	})
	f.mu.Lock()
	if f.ended != nil {
		err = f.ended
	}
	f.at.Total = f.at.Done // as objects came and went meanwhile
	f.mu.Unlock()
	if err != nil || len(bad) == 0 {
		return err
	}
	var lost error
	if f.repair {
		lost = f.e.refetch(ctx, bad)
	}
	slices.SortFunc(bad, func(a, b toc.Digest) int { return strings.Compare(a.Hex(), b.Hex()) })
	for _, d := range bad {
		err := f.found(ProblemObject, d.String(), "has wrong content or has gone from the disk", func() error { return lost })
		if err != nil {
			return err
		}
	}
	return nil
}

// images looks for what is marked complete and is not.
func (f *fsck) images(ctx context.Context) error {
	f.e.mu.Lock()
	var complete []*image
	for _, img := range f.e.images {
		if f.sum.Images++; img.rec.Complete {
			complete = append(complete, img)
		}
	}
	f.e.mu.Unlock()
	for _, img := range complete {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := f.e.missing(img)
		if err != nil || p.objects == 0 {
			continue // the TOCs are reported already
		}
		var gone []toc.Digest
		for i, needed := range p.need {
			if needed {
				gone = append(gone, p.list[i].Digest)
			}
		}
		detail := fmt.Sprintf("is marked complete and lacks %d objects", len(gone))
		if err := f.found(ProblemImage, f.e.recordOf(img).Name+"@"+img.digest.String(), detail, func() error { return f.e.refetch(ctx, gone) }); err != nil {
			return err
		}
	}
	return nil
}

// orphans looks for files that belong to nothing.
func (f *fsck) orphans(ctx context.Context) error {
	f.stage(StageOrphans)
	// No pull is between writing a file and knowing it.
	unlock, err := f.e.gate.lock(ctx)
	if err != nil {
		return err
	}
	orphans, err := f.e.orphanFiles(time.Now().Add(-time.Hour)) // younger ones may be in use
	unlock()
	if err != nil {
		return err
	}
	strays, err := f.e.objects.Strays()
	if err != nil {
		return err
	}
	for _, name := range append(orphans, strays...) {
		path := filepath.Join(f.e.cfg.Root, name)
		if err := f.found(ProblemOrphan, name, "belongs to nothing", func() error { return removeAll(path) }); err != nil {
			return err
		}
	}
	return nil
}
