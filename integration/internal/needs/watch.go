package needs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// Names below the directory of the world.
const (
	diskName = "needs"
	nodeName = diskName + "/node"
)

// watch starts an image once on a file system of its own, whose device reads
// nothing ahead: what is in the page cache afterwards was asked for.
func watch(ctx context.Context, w *sandbox.World, bin tools.Binaries, im corpus.Image) (_ *Start, err error) {
	conf := w.Link.Config()
	if err := w.Link.Set(wan.Config{}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Link.Set(conf)) }()
	ref, err := w.Push(ctx, im.Layout, im.Name, im.Tag)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(w.Dir, diskName)
	detach, err := disk(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, detach()) }()
	n, err := w.StartNode(ctx, sandbox.NodeConfig{Name: nodeName, Binaries: bin})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Remove()) }()
	if err := n.Pull(ctx, ref, "--snapshotter", "overlayfs"); err != nil {
		return nil, err
	}
	// The second view shows the image without what the container writes.
	rootfs, image := filepath.Join(dir, "rootfs"), filepath.Join(dir, "image")
	for view, flags := range map[string][]string{rootfs: {"--rw"}, image: nil} {
		if err := os.Mkdir(view, 0o755); err != nil {
			return nil, err
		}
		args := append([]string{"image", "mount", "--snapshotter", "overlayfs"}, flags...)
		if _, err := n.Ctr(ctx, append(args, ref, view)...); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, unix.Unmount(view, unix.MNT_DETACH)) }()
	}
	if err := sandbox.DropCaches(); err != nil {
		return nil, err
	}
	o, err := observe(rootfs)
	if err != nil {
		return nil, err
	}
	flags, argv, err := command(im)
	if err != nil {
		return nil, errors.Join(err, o.stop())
	}
	start := time.Now()
	c, err := n.Run(ctx, sandbox.Run{
		Ref: rootfs, ID: fmt.Sprintf("%s-%d", diskName, os.Getpid()), Snapshotter: "overlayfs", Argv: argv, Flags: append(flags, "--rootfs"),
	})
	if err != nil {
		return nil, errors.Join(err, o.stop())
	}
	err = c.WaitReady(ctx, im.Ready)
	s := &Start{Ready: time.Since(start).Seconds()}
	err = errors.Join(err, o.stop())
	if err == nil {
		s.Files, err = o.files(image, start)
	}
	return s, errors.Join(err, c.Remove(ctx))
}

// disk mounts a new file system at dir; detach removes it.
func disk(ctx context.Context, dir string) (detach func() error, err error) {
	const size = 16 << 30 // sparse: it takes what is written
	file := dir + ".img"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", file},
		{"mount", "-o", "loop", file, dir},
	} {
		if _, err := process.Run(nil, exec.CommandContext(ctx, args[0], args[1:]...)); err != nil {
			return nil, errors.Join(err, os.Remove(file))
		}
	}
	detach = func() error {
		return errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(file))
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, errors.Join(err, detach())
	}
	ahead := fmt.Sprintf("/sys/dev/block/%d:%d/bdi/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	if err := os.WriteFile(ahead, []byte("0"), 0); err != nil {
		return nil, errors.Join(err, detach())
	}
	return detach, nil
}

// observer gathers what is opened in a file system.
type observer struct {
	group *os.File
	done  chan error

	opened map[string]time.Time // valid when done was received from
}

func observe(mountpoint string) (*observer, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_UNLIMITED_QUEUE|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fanotify: %w", err)
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN, unix.AT_FDCWD, mountpoint); err != nil {
		return nil, errors.Join(fmt.Errorf("fanotify: watch %s: %w", mountpoint, err), unix.Close(fd))
	}
	// With FAN_NONBLOCK the runtime polls it, and Close ends a Read.
	o := &observer{group: os.NewFile(uintptr(fd), "fanotify"), done: make(chan error, 1), opened: make(map[string]time.Time)}
	go func() { o.done <- o.read(mountpoint) }()
	return o, nil
}

func (o *observer) stop() error {
	err := o.group.Close()
	return errors.Join(err, <-o.done)
}

func (o *observer) read(mountpoint string) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := o.group.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("fanotify: %w", err)
		}
		now := time.Now()
		for b := buf[:n]; len(b) >= metadataLen; {
			length, fd := parse(b)
			if length < metadataLen || length > len(b) {
				return fmt.Errorf("fanotify: event of %d bytes", length)
			}
			b = b[length:]
			if fd < 0 {
				continue
			}
			// In the container's mount namespace the path has no mount point before it.
			path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			if err == nil {
				path = strings.TrimPrefix(path, mountpoint)
				if _, ok := o.opened[path]; !ok {
					o.opened[path] = now
				}
			}
			_ = unix.Close(fd) // opened for reading
		}
	}
}

// files finds out which pages of what was opened are in memory.
func (o *observer) files(image string, start time.Time) ([]File, error) {
	opened := make(map[string]float64, len(o.opened))
	for p, t := range o.opened {
		opened[p] = t.Sub(start).Seconds()
	}
	var all []File
	for _, f := range inOrder(opened) {
		st, err := os.Lstat(filepath.Join(image, f.Path))
		if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
			continue // of the container's own making, or no contents
		}
		f.Size = st.Size()
		if f.Read, err = resident(filepath.Join(image, f.Path), f.Size); err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}
