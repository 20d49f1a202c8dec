package objects

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/plugins/internal/failpoint"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	objectsName = "objects"
	partialName = "partial"

	dirMode     = 0o700
	objectMode  = 0o400
	partialMode = 0o600 // while it is written; root would not need it

	blockSize = 4096 // of the file systems we care for: unit of holes
)

// Store is safe for concurrent use.
type Store struct {
	dir, partial     string
	dirFD, partialFD int
	seq              atomic.Uint64 // makes names of temporary files differ
	files            atomic.Int64  // partial files held open by entries

	// dirs[d[0]] is held while names of objects and partial files with the first
	// byte d[0] are made or removed, so that the sets below and the disk agree.
	dirs [256]sync.Mutex

	mu      sync.RWMutex // guards the following
	local   [256]map[toc.Digest]blocks
	n       int64
	bytes   int64
	entries map[toc.Digest]*entry
	pins    map[toc.Digest]int32
}

// Open loads the store below root, which it creates if need be. What is partly there
// stays for Adopt; see KeepPartial.
func Open(root string) (_ *Store, err error) {
	s := &Store{
		dir:     filepath.Join(root, objectsName),
		partial: filepath.Join(root, partialName),
		dirFD:   -1, partialFD: -1,
		entries: make(map[toc.Digest]*entry),
		pins:    make(map[toc.Digest]int32),
	}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	for _, d := range []string{s.dir, s.partial} {
		if err := os.MkdirAll(d, dirMode); err != nil {
			return nil, fmt.Errorf("create object store: %w", err)
		}
	}
	if s.dirFD, err = openDir(s.dir); err != nil {
		return nil, err
	}
	if s.partialFD, err = openDir(s.partial); err != nil {
		return nil, err
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range s.local {
		g.Go(func() error { return s.load(i) })
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("load object store: %w", err)
	}
	return s, nil
}

func openDir(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %q: %w", path, err)
	}
	return fd, nil
}

// load reads the directory of the objects whose first byte is i. Empty files are
// what a power failure leaves of objects that were not synced; there are no
// empty objects.
func (s *Store) load(i int) error {
	name := fmt.Sprintf("%02x", i)
	dir := filepath.Join(s.dir, name)
	s.local[i] = make(map[toc.Digest]blocks)
	if err := os.Mkdir(dir, dirMode); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() // of a directory
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	var n, bytes int64
	for _, rest := range names {
		d, err := toc.ParseDigest("sha256:" + name + rest)
		if err != nil {
			continue // not ours
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(f.Fd()), rest, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("stat %s: %w", d, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
			if err := unix.Unlinkat(int(f.Fd()), rest, 0); err != nil {
				return fmt.Errorf("remove broken %s: %w", d, err)
			}
			continue
		}
		s.local[i][d] = toBlocks(st.Blocks * 512)
		n++
		bytes += st.Blocks * 512
	}
	s.mu.Lock()
	s.n += n
	s.bytes += bytes
	s.mu.Unlock()
	return nil
}

// Close closes what the store holds open. There must be no writers any more.
func (s *Store) Close() error {
	var errs []error
	for _, fd := range []*int{&s.dirFD, &s.partialFD} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
			*fd = -1
		}
	}
	return errors.Join(errs...)
}

// Dir is the directory of the complete objects: a data-only layer.
func (s *Store) Dir() string { return s.dir }

// PartialDir is the directory of what is arriving.
func (s *Store) PartialDir() string { return s.partial }

// Has tells whether d is complete.
func (s *Store) Has(d toc.Digest) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.has(d)
}

// has is Has with s.mu held.
func (s *Store) has(d toc.Digest) bool {
	_, ok := s.local[d[0]][d]
	return ok
}

// Missing returns the indices of the objects that are not complete.
func (s *Store) Missing(objs []toc.Object) []int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []int
	for i := range objs {
		if !s.has(objs[i].Digest) {
			out = append(out, i)
		}
	}
	return out
}

// Size of a complete object.
func (s *Store) Size(d toc.Digest) (int64, bool) {
	if !s.Has(d) {
		return 0, false
	}
	var st unix.Stat_t
	if err := unix.Fstatat(s.dirFD, d.Path(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, false
	}
	return st.Size, true
}

// blocks is disk space in units of blockSize.
type blocks uint32

func toBlocks(bytes int64) blocks { return blocks((bytes + blockSize - 1) / blockSize) }

// Allocated is the disk space of a complete object; 0 if it is none.
func (s *Store) Allocated(d toc.Digest) int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return int64(s.local[d[0]][d]) * blockSize
}

// Usage is the disk space of all complete objects, and their number.
func (s *Store) Usage() (bytes, n int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.bytes, s.n
}

// Sync makes all complete objects durable.
func (s *Store) Sync() error {
	if err := unix.Syncfs(s.dirFD); err != nil {
		return fmt.Errorf("sync objects: %w", err)
	}
	failpoint.Here("objects-synced")
	return nil
}

// publish renames the checked file name in partial/, which takes size bytes on
// the disk, to the object d, and tells those who wait.
func (s *Store) publish(d toc.Digest, name string, size int64) error {
	dir := &s.dirs[d[0]]
	dir.Lock()
	defer dir.Unlock()
	if err := unix.Renameat(s.partialFD, name, s.dirFD, d.Path()); err != nil {
		return writeError(d, err)
	}
	failpoint.Here("object-published")
	s.mu.Lock()
	if !s.has(d) {
		s.local[d[0]][d] = toBlocks(size)
		s.n++
		s.bytes += size
	}
	e := s.entries[d]
	delete(s.entries, d)
	s.mu.Unlock()
	if e != nil {
		e.end(nil)
	}
	return nil
}
