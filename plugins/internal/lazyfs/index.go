package lazyfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// An index file is a header (magic, number of records, both 8 bytes) and the
// records: digest and size of an object, sorted by digest, each once.
const (
	indexDir    = "index"
	indexSuffix = ".idx"
	indexMagic  = "SLINDEX1"
	headerSize  = 16
	recordSize  = 32 + 8
)

// IndexDir is the directory of the index files of a server with this Config.State.
func IndexDir(state string) string { return filepath.Join(state, indexDir) }

// IndexPath is the path of the index file called name, which must be a file name
// without a leading dot.
func IndexPath(state, name string) string {
	return filepath.Join(state, indexDir, name+indexSuffix)
}

// WriteIndex makes objects known to the child. The file must be there before a
// tree that names the objects is mounted, and may be removed when none is.
func WriteIndex(path string, objs []toc.Object) (err error) {
	type record struct {
		d    toc.Digest
		size int64
	}
	recs := make([]record, len(objs))
	for i, o := range objs {
		recs[i] = record{o.Digest, o.Size}
	}
	slices.SortFunc(recs, func(a, b record) int { return bytes.Compare(a.d[:], b.d[:]) })
	recs = slices.CompactFunc(recs, func(a, b record) bool { return a.d == b.d })

	buf := make([]byte, 0, headerSize+len(recs)*recordSize)
	buf = append(buf, indexMagic...)
	buf = binary.LittleEndian.AppendUint64(buf, uint64(len(recs)))
	for _, r := range recs {
		buf = append(buf, r.d[:]...)
		buf = binary.LittleEndian.AppendUint64(buf, uint64(r.size))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	// The suffix keeps it from being read before it is renamed.
	f, err := os.CreateTemp(filepath.Dir(path), ".*.tmp")
	if err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write index %q: %w", path, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(buf)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// mapping is an index file in memory.
type mapping struct {
	ino, size uint64
	data      []byte
}

func mapIndex(path string) (*mapping, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Size < headerSize || st.Size > 1<<40 {
		return nil, fmt.Errorf("index %q: %d bytes", path, st.Size)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map index %q: %w", path, err)
	}
	n := binary.LittleEndian.Uint64(data[8:])
	if string(data[:8]) != indexMagic || n > 1<<32 || headerSize+n*recordSize != uint64(st.Size) {
		return nil, errors.Join(fmt.Errorf("index %q: not an index of %d bytes", path, st.Size), unix.Munmap(data))
	}
	return &mapping{ino: st.Ino, size: uint64(st.Size), data: data}, nil
}

func (m *mapping) len() int { return (len(m.data) - headerSize) / recordSize }

func (m *mapping) record(i int) []byte {
	return m.data[headerSize+i*recordSize:][:recordSize]
}

// find calls fn for all objects whose digest begins with the eight bytes id.
func (m *mapping) find(id uint64, fn func(toc.Digest, int64)) {
	n := m.len()
	i := sort.Search(n, func(i int) bool { return binary.BigEndian.Uint64(m.record(i)) >= id })
	for ; i < n; i++ {
		r := m.record(i)
		if binary.BigEndian.Uint64(r) != id {
			return
		}
		fn(toc.Digest(r[:32]), int64(binary.LittleEndian.Uint64(r[32:])))
	}
}

// known is the set of all index files of a directory.
type known struct {
	dir string

	mu   sync.RWMutex // guards the following, and the mappings from being unmapped
	maps map[string]*mapping
}

// errCollision: two objects whose digests begin with the same eight bytes. That
// is no accident, and whoever made them harms himself only: both are refused.
var errCollision = errors.New("two objects with one node number")

// find returns the object whose digest begins with id.
func (k *known) find(id uint64) (d toc.Digest, size int64, err error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	found := false
	for _, m := range k.maps {
		m.find(id, func(fd toc.Digest, fsize int64) {
			if found && fd != d {
				err = errCollision
			}
			d, size, found = fd, fsize, true
		})
	}
	if err == nil && !found {
		err = fs.ErrNotExist
	}
	return d, size, err
}

// scan makes the set that of the files in the directory. Files that cannot be
// read are left out and reported.
func (k *known) scan() error {
	names, err := os.ReadDir(k.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read index directory: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	seen := make(map[string]bool, len(names))
	for _, de := range names {
		name := de.Name()
		if strings.HasPrefix(name, ".") || !strings.HasSuffix(name, indexSuffix) {
			continue
		}
		var st unix.Stat_t
		path := filepath.Join(k.dir, name)
		if err := unix.Lstat(path, &st); err != nil {
			continue // just removed
		}
		seen[name] = true
		old := k.maps[name]
		if old != nil && old.ino == st.Ino && old.size == uint64(st.Size) {
			continue
		}
		m, err := mapIndex(path)
		if err != nil {
			errs = append(errs, err)
			delete(seen, name)
			continue
		}
		if old != nil {
			errs = append(errs, unix.Munmap(old.data))
		}
		k.maps[name] = m
	}
	for name, m := range k.maps {
		if !seen[name] {
			errs = append(errs, unix.Munmap(m.data))
			delete(k.maps, name)
		}
	}
	return errors.Join(errs...)
}
