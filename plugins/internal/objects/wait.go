package objects

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Wait blocks until the bytes [off, off+n) of d can be read from Dir or
// PartialDir (what is beyond the end counts as there), until ctx ends, the object
// turns out to be wrong (errdefs.ErrDataLoss), or Fail is called for it. It waits
// for objects that nobody writes yet as well.
func (s *Store) Wait(ctx context.Context, d toc.Digest, off, n int64) error {
	if off < 0 || n <= 0 || off+n < off {
		return fmt.Errorf("wait for %d bytes at %d: %w", n, off, errdefs.ErrInvalidArgument)
	}
	if s.Has(d) {
		return nil
	}
	s.mu.Lock()
	if s.has(d) {
		s.mu.Unlock()
		return nil
	}
	e := s.join(d)
	s.mu.Unlock()
	defer s.leave(e, false)
	return e.wait(ctx, &waiter{
		first: off / toc.PieceSize,
		last:  (off + n - 1) / toc.PieceSize,
		ch:    make(chan error, 1),
	})
}

// Fail ends with err all Waits for ds that are not satisfied. Later ones block again.
func (s *Store) Fail(err error, ds ...toc.Digest) {
	for _, d := range ds {
		s.mu.RLock()
		e := s.entries[d]
		s.mu.RUnlock()
		if e != nil {
			e.mu.Lock()
			e.wakeAll(err)
			e.mu.Unlock()
		}
	}
}
