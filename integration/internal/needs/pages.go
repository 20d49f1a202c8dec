package needs

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const metadataLen = int(unsafe.Sizeof(unix.FanotifyEventMetadata{}))

// parse returns the length of the event that b begins with, and its descriptor.
func parse(b []byte) (length, fd int) {
	const fdOffset = int(unsafe.Offsetof(unix.FanotifyEventMetadata{}.Fd))
	return int(binary.NativeEndian.Uint32(b)), int(int32(binary.NativeEndian.Uint32(b[fdOffset:])))
}

// resident are the bytes of the pages of a file that are in the page cache.
func resident(path string, size int64) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("map %s: %w", path, err)
	}
	defer func() { _ = unix.Munmap(m) }() // it was mapped
	page := int64(os.Getpagesize())
	in := make([]byte, (size+page-1)/page)
	if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(size), uintptr(unsafe.Pointer(&in[0]))); e != 0 {
		return 0, fmt.Errorf("mincore %s: %w", path, e)
	}
	var n int64
	for i, b := range in {
		if b&1 != 0 {
			n += min(page, size-int64(i)*page)
		}
	}
	return n, nil
}
