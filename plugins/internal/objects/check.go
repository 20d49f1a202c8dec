package objects

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Check hashes all complete objects, while others read and write. It calls bad, from
// several goroutines, for those that have gone from the disk or whose content is not
// what their name says, and progress with the bytes of each that was looked at.
func (s *Store) Check(ctx context.Context, progress func(bytes int64), bad func(d toc.Digest)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range s.local {
		g.Go(func() error {
			buf := make([]byte, 256<<10)
			for _, d := range s.localAt(i) {
				if err := ctx.Err(); err != nil {
					return err
				}
				size, _ := s.Size(d)
				good, err := s.verify(d, buf)
				if err != nil {
					return err
				}
				if !good && s.Has(d) { // not just swept
					bad(d)
				}
				progress(size)
			}
			return nil
		})
	}
	return g.Wait()
}

// localAt lists the complete objects whose first byte is i.
func (s *Store) localAt(i int) []toc.Digest {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ds := make([]toc.Digest, 0, len(s.local[i]))
	for d := range s.local[i] {
		ds = append(ds, d)
	}
	return ds
}

// All lists the complete objects.
func (s *Store) All() []toc.Digest {
	var all []toc.Digest
	for i := range s.local {
		all = append(all, s.localAt(i)...)
	}
	return all
}

// Drop removes objects even if they are in use: they are wrong.
func (s *Store) Drop(ds ...toc.Digest) error {
	for _, d := range ds {
		if _, _, err := s.remove(d, true); err != nil {
			return err
		}
	}
	return nil
}

// Strays lists the files below Dir, as paths below the root, that are no objects.
func (s *Store) Strays() ([]string, error) {
	var strays []string
	for i := range s.local {
		dir := fmt.Sprintf("%02x", i)
		names, err := os.ReadDir(filepath.Join(s.dir, dir))
		if err != nil {
			return nil, err
		}
		for _, de := range names {
			if d, err := toc.ParseDigest("sha256:" + dir + de.Name()); err != nil || !s.Has(d) && s.settled(d) {
				strays = append(strays, filepath.Join(objectsName, dir, de.Name()))
			}
		}
	}
	return strays, nil
}

// settled waits until nobody is making or removing the name of d, and tells whether
// it is still there and no object.
func (s *Store) settled(d toc.Digest) bool {
	dir := &s.dirs[d[0]]
	dir.Lock()
	defer dir.Unlock()
	_, err := os.Lstat(filepath.Join(s.dir, d.Path()))
	return err == nil && !s.Has(d)
}
