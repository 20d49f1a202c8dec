package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/starlight-delta/starlight/proxyd/internal/background"
	"github.com/starlight-delta/starlight/proxyd/internal/blob"
	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// maxFresh is how many images may wait to be compressed. What is dropped is
// queued again when it is asked for.
const maxFresh = 64

// fresh compresses images as well as may be, one at a time and beside everything
// else, and keeps the frames in the blob store: the next fresh pull is sent these.
type fresh struct {
	l        *library
	compress delta.Compress
	parallel int                             // frames at a time
	files    *cache[toc.Digest, *framesFile] // by manifest
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	queue    chan *image

	mu     sync.Mutex
	queued map[toc.Digest]bool // guarded by mu: waiting, done, or failed in this process
}

// framesFile is an open file of frames.
type framesFile struct {
	*delta.Frames
	refs
}

func newFresh(l *library, compress delta.Compress, parallel int) *fresh {
	ctx, cancel := context.WithCancel(context.Background())
	f := &fresh{
		l: l, compress: compress, parallel: parallel, cancel: cancel, queue: make(chan *image, maxFresh), queued: map[toc.Digest]bool{},
		files: newCache[toc.Digest](l.cfg.Limits.CacheBytes/6, func(f *framesFile) { f.release() }),
	}
	f.wg.Go(func() { f.run(ctx) })
	return f
}

func (f *fresh) close() {
	f.cancel()
	f.wg.Wait()
	f.files.close()
}

// FramesKey is the key of the blob of frames that is made of an image. The number changes
// with the format and with how frames are put together.
func FramesKey(manifest toc.Digest) string { return "frames/2/" + manifest.Path() }

// StaleFrames is what the keys of frames of the versions before begin with.
const StaleFrames = "frames/1"

// open returns the frames of an image, which must be released, or nil if there are
// none yet; then they are made.
func (f *fresh) open(ctx context.Context, im *image) (*framesFile, error) {
	for {
		file, err := f.files.get(ctx, im.manifest, f.l.cfg.Limits.Plan, func(ctx context.Context) (*framesFile, int64, error) {
			b, err := f.l.cfg.Blobs.Open(ctx, FramesKey(im.manifest))
			if err != nil {
				return nil, 0, err
			}
			frames, err := delta.OpenFrames(b, im.delta)
			if err != nil {
				return nil, 0, errors.Join(err, b.Close())
			}
			return &framesFile{frames, newRefs(frames)}, frames.Cost() + 4<<10, nil
		})
		switch {
		case errors.Is(err, blob.ErrNotExist), errors.Is(err, delta.ErrFrames):
			f.enqueue(im)
			return nil, nil
		case err != nil:
			return nil, err
		case file.acquire():
			return file, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

func (f *fresh) enqueue(im *image) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.queued[im.manifest] {
		return
	}
	select {
	case f.queue <- im:
		f.queued[im.manifest] = true
	default:
	}
}

// forget closes frames that are deleted; they may be made again.
func (f *fresh) forget(manifests []toc.Digest) {
	f.files.remove(manifests...)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range manifests {
		delete(f.queued, m)
	}
}

func (f *fresh) run(ctx context.Context) {
	if err := background.Lower(); err != nil {
		f.l.cfg.Log.Warn("images are compressed at normal priority", "error", err)
	}
	for {
		select {
		case im := <-f.queue:
			if err := background.Guard(func() error { return f.make(ctx, im) })(); err != nil && ctx.Err() == nil {
				f.l.cfg.Log.Warn("image is not compressed for fresh pulls", "digest", im.manifest.String(), "error", err.Error())
			}
		case <-ctx.Done():
			return
		}
	}
}

// make makes the frames of an image and stores them.
func (f *fresh) make(ctx context.Context, im *image) error {
	order, err := f.l.current(ctx, im)
	if err != nil {
		return err
	}
	w, err := f.l.cfg.Blobs.Create(ctx, FramesKey(im.manifest))
	if err != nil {
		return err
	}
	packs := f.l.packSet(im.packKeys())
	defer packs.close()
	buf := bufio.NewWriterSize(w, 1<<20)
	err = delta.WriteFrames(ctx, buf, im.delta, delta.Make(im.delta, nil, order), packs.pack, f.compress, f.parallel)
	if err == nil {
		err = buf.Flush()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("compress %s: %w", im.manifest, err), w.Abort())
	}
	return w.Commit()
}
