package lazyfs

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What is needed of <linux/fuse.h> beyond the structures that go-fuse has. Its
// servers do not fit: they want to see FUSE_INIT, and hold the buffer of each
// read while it waits.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opRead        = 15
	opStatfs      = 17
	opInit        = 26
	opReaddir     = 28
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42

	notifyResend = 7

	rootID   = 1
	firstDir = 2 // of the directories 00 to ff
	firstObj = firstDir + 256

	// requestSize is what the kernel wants a buffer for requests to have at least.
	requestSize = 8192

	// maxRead is the largest read the kernel asks for.
	maxRead = 1 << 20

	// readAhead is small: who reads a page waits for all that is read with it, and it
	// looks like what is needed.
	readAhead = 128 << 10

	inHeaderSize  = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))
)

// bytesOf is the memory of a structure of the protocol.
func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) //nolint:gosec // the kernel's structures, without pointers
}

// structOf reads a structure of the protocol from the start of b. It is false if
// b is too short.
func structOf[T any](b []byte) (v T, ok bool) {
	return v, copy(bytesOf(&v), b) == int(unsafe.Sizeof(v))
}

// mountFuse mounts a new file system on dir and answers its FUSE_INIT. It returns
// the descriptor of the connection, and whether requests can be sent again.
func mountFuse(dir string) (fd int, resend bool, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false, fmt.Errorf("open /dev/fuse (is the module fuse loaded?): %w", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, maxRead)
	err = unix.Mount("starlight", dir, "fuse.starlight", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, opts)
	if err != nil {
		return -1, false, errors.Join(fmt.Errorf("mount fuse on %q: %w", dir, err), unix.Close(fd))
	}
	resend, err = answerInit(fd)
	if err != nil {
		return -1, false, errors.Join(fmt.Errorf("fuse on %q: %w", dir, err), unix.Unmount(dir, unix.MNT_DETACH), unix.Close(fd))
	}
	return fd, resend, nil
}

// answerInit reads the first request of a connection, which the kernel has sent
// by the end of mount(2), and tells what we can do.
func answerInit(fd int) (resend bool, err error) {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	err = retry(func() error {
		n, err := unix.Poll(poll, int((10 * time.Second).Milliseconds()))
		if err == nil && n == 0 {
			return errors.New("the kernel does not speak")
		}
		return err
	})
	if err != nil {
		return false, err
	}
	buf := make([]byte, requestSize)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return false, err
	}
	// Old kernels send less than the structure.
	in, _ := structOf[fuse.InitIn](append(buf[:n:n], make([]byte, unsafe.Sizeof(fuse.InitIn{}))...))
	if in.Opcode != opInit || in.Major != 7 || in.Minor < 28 {
		return false, fmt.Errorf("kernel speaks fuse %d.%d (request %d), need 7.28 or later", in.Major, in.Minor, in.Opcode)
	}
	offered := uint64(in.Flags)
	if offered&fuse.CAP_INIT_EXT != 0 {
		offered = in.Flags64()
	}
	// Not asked for: AUTO_INVAL_DATA (nothing changes), PASSTHROUGH (see doc.go).
	flags := offered & (fuse.CAP_ASYNC_READ | fuse.CAP_PARALLEL_DIROPS | fuse.CAP_MAX_PAGES)
	out := fuse.InitOut{
		Major:        7,
		Minor:        min(in.Minor, 38),
		MaxReadAhead: readAhead,
		Flags:        uint32(flags),
		MaxWrite:     4096, // there are none, but it must not be zero
		MaxPages:     maxRead / 4096,
		TimeGran:     1,
		// Readahead counts as background. What waits for its object must not keep
		// back what could be read at once, so that no limit is the right one.
		MaxBackground:       1<<16 - 1,
		CongestionThreshold: 1<<16 - 1,
	}
	return offered&fuse.CAP_HAS_RESEND != 0, reply(fd, in.Unique, 0, bytesOf(&out))
}

// reply answers a request.
func reply(fd int, unique uint64, errno unix.Errno, payload []byte) error {
	buf := make([]byte, outHeaderSize, outHeaderSize+len(payload))
	return replyIn(fd, unique, errno, append(buf, payload...))
}

// replyIn answers a request with buf, which has room for the header at its start.
func replyIn(fd int, unique uint64, errno unix.Errno, buf []byte) error {
	h := fuse.OutHeader{Length: uint32(len(buf)), Status: -int32(errno), Unique: unique}
	copy(buf, bytesOf(&h))
	err := retry(func() error {
		_, err := unix.Write(fd, buf)
		return err
	})
	if errors.Is(err, unix.ENOENT) {
		return nil // the request was aborted
	}
	return err
}

// askResend makes the kernel send again what was read and not answered.
func askResend(fd int) error {
	h := fuse.OutHeader{Length: uint32(outHeaderSize), Status: notifyResend}
	_, err := unix.Write(fd, bytesOf(&h))
	return err
}

// device is the device number of what is at path, and whether it is a mount
// point. It never asks the server of a file system, which may be gone.
func device(path string) (dev uint64, mounted bool, err error) {
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	return unix.Mkdev(st.Dev_major, st.Dev_minor), st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, err
}

// Mounted tells whether something is mounted on a directory.
func Mounted(dir string) bool {
	_, mounted, err := device(dir)
	return err == nil && mounted
}

// detach removes all mounts on dir. Those who use them still do.
func detach(dir string) error {
	for {
		_, mounted, err := device(dir)
		if err != nil || !mounted {
			return err
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %q: %w", dir, err)
		}
	}
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
