package objects

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// window is what the kernel reads ahead for one advice at least: more is cut off (see
// force_page_cache_ra in mm/readahead.c).
const window = 128 << 10

// Cache has the kernel read n bytes of a complete object from off on into its page cache,
// and does not wait for them.
func (s *Store) Cache(d toc.Digest, off, n int64) error {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Openat(s.dirFD, d.Path(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NOATIME, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("open object %s: %w", d, err)
	}
	defer unix.Close(fd) // read only
	for end := off + n; off < end; off += window {
		if err := unix.Fadvise(fd, off, min(window, end-off), unix.FADV_WILLNEED); err != nil {
			return fmt.Errorf("read object %s ahead: %w", d, err)
		}
	}
	return nil
}
