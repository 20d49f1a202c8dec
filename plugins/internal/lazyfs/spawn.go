package lazyfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// self is the binary of this process, even if its file has been replaced.
const self = "/proc/self/exe"

// binaryID names the file that this process runs, so that a child of an older one
// is noticed. Its content would be a better name, and take longer.
func binaryID() (toc.Digest, error) {
	var st unix.Stat_t
	if err := unix.Stat(self, &st); err != nil {
		return toc.Digest{}, fmt.Errorf("stat %s: %w", self, err)
	}
	return sha256.Sum256(fmt.Appendf(nil, "%d %d %d %d.%d", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec)), nil
}

// spawn starts a child on the mount. resume: it is not the first on it.
func (s *Server) spawn(ctx context.Context, resume bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	path := filepath.Join(s.c.State, socketName)
	ln, err := listen(path)
	if err != nil {
		return fmt.Errorf("listen for the child: %w", err)
	}
	defer ln.Close() // the child has it
	out, err := os.OpenFile(s.logPath(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close() // the child has it

	s.mu.Lock()
	o := options{
		objects: s.c.Objects, partial: s.c.Partial, state: s.c.State, index: s.c.Index, observe: s.c.Observe != nil,
		device: s.device, resend: s.resend, resume: resume,
	}
	// A second descriptor, so that the child's is not closed under it.
	fd, err := unix.FcntlInt(uintptr(s.fuse), unix.F_DUPFD_CLOEXEC, 0)
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("descriptor of the mount: %w", err)
	}
	fuse := os.NewFile(uintptr(fd), "/dev/fuse")
	defer fuse.Close() // the child has it

	cmd := exec.CommandContext(context.WithoutCancel(ctx), self) // it outlives us
	cmd.Args = append([]string{os.Args[0]}, o.args()...)
	cmd.Dir = "/"
	// The limits count from the first instruction on: the packages of the binary
	// initialize themselves before Main can set them.
	cmd.Env = append(os.Environ(), "GOGC=50", "GOMEMLIMIT=48MiB")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{fuse, ln} // fuseFD, listenFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the child: %w", err)
	}
	go func() { _ = cmd.Wait() }() // so that it does not stay a zombie; supervise sees its end

	p, _, dup, err := connect(path)
	if err != nil {
		return errors.Join(fmt.Errorf("connect to the child: %w (%s)", err, tail(s.logPath())), cmd.Process.Kill())
	}
	s.mu.Lock()
	s.child = p
	s.mu.Unlock()
	return unix.Close(dup) // we have it
}

// tail is the end of what a child has written.
func tail(path string) string {
	const most = 2000
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close() // read only
	st, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-most), most))
	if err != nil {
		return err.Error()
	}
	return string(b)
}
