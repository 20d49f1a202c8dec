package lazyfs

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// countersName is a file of 64-bit counters in the order of operations. The child
// maps it, so that counting needs no word between the processes, and the next
// child goes on counting.
const (
	countersName = "requests"
	countersSize = 4096
)

// operations are the names of what is counted.
var operations = [...]string{"lookup", "getattr", "read", "interrupt", "forget", "statfs", "other"}

// operation is the index of an opcode in operations.
func operation(opcode uint32) int {
	switch opcode {
	case opLookup:
		return 0
	case opGetattr:
		return 1
	case opRead:
		return 2
	case opInterrupt:
		return 3
	case opForget, opBatchForget:
		return 4
	case opStatfs:
		return 5
	default:
		return len(operations) - 1
	}
}

// counters are those of the child.
type counters [len(operations)]atomic.Uint64

func (c *counters) count(opcode uint32) { c[operation(opcode)].Add(1) }

// openCounters maps the file in the directory of the index files.
func openCounters(state string) (_ *counters, err error) {
	f, err := os.OpenFile(filepath.Join(state, countersName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Blocks that are not there would be asked for by a write to memory, which a
	// full disk ends with a signal.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, countersSize); err != nil {
		return nil, fmt.Errorf("room for %s: %w", f.Name(), err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, countersSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return (*counters)(unsafe.Pointer(unsafe.SliceData(b))), nil //nolint:gosec // a page, which is aligned
}

// Requests tells how many requests of the kernel the children that keep their state
// in this directory have seen, by operation.
func Requests(state string) map[string]uint64 {
	out := make(map[string]uint64, len(operations))
	b, err := os.ReadFile(filepath.Join(state, countersName))
	for i, name := range operations {
		out[name] = 0
		if at := 8 * i; err == nil && len(b) >= at+8 {
			out[name] = binary.NativeEndian.Uint64(b[at:])
		}
	}
	return out
}
