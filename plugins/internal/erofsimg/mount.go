package erofsimg

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// mountFlags keep the mount, which is private to the node anyway, from giving
// more than metadata. overlayfs does not pass them on to its own mounts.
const mountFlags = unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC

// Mount mounts the image file on dir. Where the kernel (before 6.12) or the file
// system with the image (tmpfs, overlayfs) does not allow to mount the file it
// takes a loop device, which goes away with the mount.
func Mount(image, dir string) error {
	err := unix.Mount(image, dir, "erofs", mountFlags, "")
	if !errors.Is(err, unix.ENOTBLK) {
		return wrap("mount EROFS image", image, err)
	}
	loop, err := mount.SetupLoop(image, mount.LoopParams{Readonly: true, Autoclear: true})
	if err != nil {
		return wrap("set up loop device for", image, err)
	}
	// Autoclear counts openers; the mount is one.
	defer loop.Close()
	return wrap("mount EROFS image with loop device", image, unix.Mount(loop.Name(), dir, "erofs", mountFlags, ""))
}

// Unmount takes the mount off dir. Overlays that use it keep it alive. A dir
// that is no mount or does not exist is not an error.
func Unmount(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return wrap("unmount", dir, err)
}

func wrap(what, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("failed to %s %q: %w", what, path, err)
}

// Probe finds out by trying in dir how images and objects make a root file system
// on this machine: EROFS, under overlayfs, with data-only layers if it has them. The
// error says what failed. Probe leaves nothing behind.
func Probe(dir string) (Stacking, error) {
	err := probe(dir, DataOnly)
	if err == nil {
		return DataOnly, nil
	}
	if probe(dir, Ordinary) == nil {
		return Ordinary, nil
	}
	return 0, err
}

func probe(dir string, s Stacking) (err error) {
	tmp, err := os.MkdirTemp(dir, ".probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()

	var (
		content = []byte("probe\n")
		object  = toc.Digest(sha256.Sum256(content))
		image   = filepath.Join(tmp, "image")
		objects = filepath.Join(tmp, "objects")
		em      = filepath.Join(tmp, "em")
		merged  = filepath.Join(tmp, "merged")
	)
	for _, d := range []string{filepath.Join(objects, filepath.Dir(object.Path())), em, merged} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(objects, object.Path()), content, 0o400); err != nil {
		return err
	}
	t, err := toc.Merge(&toc.TOC{Entries: []toc.Entry{
		{Name: "probe", Type: toc.TypeReg, Mode: 0o644, Object: object, Size: int64(len(content))},
	}})
	if err != nil {
		return err
	}
	if err := writeFile(image, t, s); err != nil {
		return err
	}
	if err := Mount(image, em); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, Unmount(em)) }()
	options := "metacopy=on,redirect_dir=on,lowerdir=" + s.Lowerdir([]string{em}, []string{objects})
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, options); err != nil {
		return wrap("mount overlay with objects on", merged, err)
	}
	defer func() { err = errors.Join(err, Unmount(merged)) }()
	got, err := os.ReadFile(filepath.Join(merged, "probe"))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, content) {
		return fmt.Errorf("overlay shows %q, not the object: %w", got, errors.ErrUnsupported)
	}
	names, err := os.ReadDir(merged)
	if err != nil {
		return err
	}
	if len(names) != 1 {
		return fmt.Errorf("overlay shows %d names instead of one: %w", len(names), errors.ErrUnsupported)
	}
	return nil
}

func writeFile(name string, t *toc.Tree, s Stacking) (err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return Write(f, t, s)
}
