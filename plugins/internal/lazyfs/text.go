package lazyfs

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// dropText takes those pages of the binary out of this process that its
// initialization has touched: it is large, and the child needs little of it. What is
// needed again comes back from the page cache (madvise(2), MADV_DONTNEED of
// private file mappings). Mappings with pages that differ from the file, by
// relocation, are left alone.
func dropText() {
	exe, err := os.Readlink(self)
	if err != nil {
		return // it is an optimization
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close() // read only
	var start, end uintptr
	var ours bool
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		var from, to uintptr
		var mode string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); n == 3 {
			start, end = from, to
			ours = strings.HasSuffix(line, " "+exe) && (mode == "r-xp" || mode == "r--p")
			continue
		}
		if size, ok := strings.CutPrefix(line, "Anonymous:"); ok && ours && strings.TrimSpace(size) == "0 kB" {
			// An address of the binary, not of Go's heap.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED)
		}
	}
}
