package lazyfs

import (
	"container/list"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// maxFiles bounds the descriptors that are kept between reads.
const maxFiles = 512

// nodes knows the objects and their files.
type nodes struct {
	known   known
	objects int // descriptors of the directories
	partial int

	mu    sync.Mutex // guards the following
	files map[uint64]*list.Element
	used  list.List // of *file, the last used one first
}

// nodeOf is the node number of an object. Numbers below firstObj are taken, which
// one object in 2^56 suffers from.
func nodeOf(d toc.Digest) uint64 { return binary.BigEndian.Uint64(d[:]) }

// parseDir is the node number of a directory by its name.
func parseDir(name string) (uint64, bool) {
	b, err := hex.DecodeString(name)
	if err != nil || len(b) != 1 || strings.ToLower(name) != name {
		return 0, false
	}
	return firstDir + uint64(b[0]), true
}

// lookup finds an object by name. It refuses a digest whose node number is that
// of another one.
func (n *nodes) lookup(d toc.Digest) (size int64, err error) {
	id := nodeOf(d)
	if id < firstObj {
		return 0, errCollision
	}
	found, size, err := n.known.find(id)
	if errors.Is(err, fs.ErrNotExist) {
		// Not cached by the kernel, and rare: look again.
		if err := n.known.scan(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		found, size, err = n.known.find(id)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return n.local(d)
	}
	if err == nil && found != d {
		err = errCollision
	}
	return size, err
}

// local is the size of a complete object.
func (n *nodes) local(d toc.Digest) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(n.objects, d.Path(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, err
	}
	return st.Size, nil
}

// resolve is what the kernel means by a node number, which may have been given by
// a child before this one.
func (n *nodes) resolve(id uint64) (d toc.Digest, size int64, err error) {
	d, size, err = n.known.find(id)
	if errors.Is(err, fs.ErrNotExist) {
		_ = n.known.scan() // reported by lookup
		d, size, err = n.known.find(id)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return d, size, err
	}
	// In no index: then it is complete, or has been removed.
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], id)
	prefix := hex.EncodeToString(b[:])
	names, err := readDir(n.objects, prefix[:2])
	if err != nil {
		return toc.Digest{}, 0, err
	}
	err = fs.ErrNotExist
	for _, name := range names {
		if !strings.HasPrefix(name, prefix[2:]) {
			continue
		}
		found, perr := toc.ParseDigest("sha256:" + prefix[:2] + name)
		if perr != nil {
			continue
		}
		if err == nil {
			return toc.Digest{}, 0, errCollision
		}
		d = found
		if size, err = n.local(d); err != nil {
			return toc.Digest{}, 0, err
		}
	}
	return d, size, err
}

func readDir(dir int, name string) ([]string, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() // of a directory
	return f.Readdirnames(-1)
}

// file is an object that is being read. It stays open for a while after.
type file struct {
	id   uint64
	d    toc.Digest
	size int64

	refs int  // guarded by nodes.mu
	gone bool // guarded by nodes.mu: no longer in nodes.files
	idle bool // guarded by nodes.mu: not used since the last look

	mu    sync.RWMutex // guards the following, and fd from being closed under a read
	fd    int          // -1: not opened yet
	whole bool         // fd is that of a complete object
}

// open returns the file of a node. Give it back with release.
func (n *nodes) open(id uint64) (*file, error) {
	n.mu.Lock()
	if el := n.files[id]; el != nil {
		f := el.Value.(*file)
		f.refs++
		f.idle = false
		n.used.MoveToFront(el)
		n.mu.Unlock()
		return f, nil
	}
	n.mu.Unlock()

	d, size, err := n.resolve(id)
	if err != nil {
		return nil, err
	}

	n.mu.Lock()
	defer n.mu.Unlock()
	if el := n.files[id]; el != nil {
		f := el.Value.(*file)
		f.refs++
		return f, nil
	}
	f := &file{id: id, d: d, size: size, fd: -1, refs: 1}
	n.files[id] = n.used.PushFront(f)
	for el := n.used.Back(); el != nil && n.used.Len() > maxFiles; el = n.used.Back() {
		n.drop(el)
	}
	return f, nil
}

// drop forgets a file, and closes it when nobody uses it. n.mu is held.
func (n *nodes) drop(el *list.Element) {
	f := el.Value.(*file)
	n.used.Remove(el)
	delete(n.files, f.id)
	f.gone = true
	if f.refs == 0 {
		f.close()
	}
}

// tidyEvery is how long a file stays open at least, and up to twice as long.
const tidyEvery = 15 * time.Second

// tidy closes files that nobody reads any more: the disk space of objects that are
// removed is not free before.
func (n *nodes) tidy() {
	for range time.Tick(tidyEvery) {
		n.mu.Lock()
		for el := n.used.Front(); el != nil; {
			next := el.Next()
			if f := el.Value.(*file); f.refs == 0 && f.idle {
				n.drop(el)
			} else {
				f.idle = true
			}
			el = next
		}
		n.mu.Unlock()
	}
}

func (n *nodes) release(f *file) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f.refs--
	if f.refs == 0 && f.gone {
		f.close()
	}
}

func (f *file) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd >= 0 {
		_ = unix.Close(f.fd) // read only
		f.fd = -1
	}
}

// isWhole tells whether the object is complete, and opens it if it just became so.
func (n *nodes) isWhole(f *file) bool {
	f.mu.RLock()
	whole := f.whole
	f.mu.RUnlock()
	if whole {
		return true
	}
	fd, err := unix.Openat(n.objects, f.d.Path(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	f.set(fd, true)
	return true
}

func (f *file) set(fd int, whole bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd >= 0 {
		_ = unix.Close(f.fd) // read only
	}
	f.fd, f.whole = fd, whole
}

// openArrived opens the file of an object of which the source said that some of it
// is there. A partial file that was opened before may have been given up since.
func (n *nodes) openArrived(f *file) error {
	// Twice: it may be renamed between the two looks.
	for range 2 {
		if n.isWhole(f) {
			return nil
		}
		if f.linked() {
			return nil
		}
		fd, err := unix.Openat(n.partial, f.d.Hex(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err == nil {
			f.set(fd, false)
			return nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return unix.ENOENT
}

// linked tells whether the open file, if there is one, still has a name.
func (f *file) linked() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	var st unix.Stat_t
	return f.fd >= 0 && unix.Fstat(f.fd, &st) == nil && st.Nlink > 0
}

// read fills buf.
func (f *file) read(buf []byte, off int64) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for len(buf) > 0 {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Pread(f.fd, buf, off)
			return err
		})
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("object %s is shorter than %d bytes", f.d, f.size)
		}
		buf, off = buf[n:], off+int64(n)
	}
	return nil
}
