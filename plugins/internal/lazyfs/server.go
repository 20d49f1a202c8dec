package lazyfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Source brings objects.
type Source interface {
	// Range blocks until the bytes [off, off+n) of d can be read in Objects or
	// Partial. ctx ends when nobody waits for them any more. The reader gets
	// ENOENT for errdefs.ErrNotFound, and EIO for all other errors.
	Range(ctx context.Context, d toc.Digest, off, n int64) error
}

// Config of a Server.
type Config struct {
	Dir     string // mount point, created if need be
	Objects string // directory with aa/rest: what is complete
	Partial string // directory with <hex>: what is arriving; both must stay what they are
	State   string // directory of ours: socket, index files
	Index   string // directory of the index files, if it is not in State
	Source  Source
	Log     *log.Entry
	// Observe, if not nil, is told what is opened and read, also of what is local.
	// It must not block. What happens while no process of this kind runs is lost.
	Observe func(Access)
	// OnRemount, if not nil, is called (before anything is served) when the file
	// system had to be mounted anew while it was in use: reads that were blocked
	// have failed, and overlays on the old mount must be remade.
	OnRemount func()

	noResend bool // tests: as on Linux before 6.9
}

// Access is something that was opened or read.
type Access struct {
	Object toc.Digest
	Off, N int64 // N is 0 if it was opened
	At     time.Time
	// Wait is how long the reader had to wait for the bytes, 0 if they were there.
	Wait time.Duration
}

// Server is the side of the file system that is in containerd's process.
type Server struct {
	c           Config
	reconnected bool
	cancel      context.CancelFunc
	done        sync.WaitGroup

	mu      sync.Mutex // guards the following
	closing bool
	fuse    int // descriptor of the connection to the kernel
	device  uint64
	resend  bool
	child   *peer
}

// Start mounts the file system and starts the child that serves it, or connects
// to the child of an earlier process. ctx is for the start only.
func Start(ctx context.Context, c Config) (*Server, error) {
	if c.Log == nil {
		c.Log = log.G(ctx)
	}
	if c.Index == "" {
		c.Index = filepath.Join(c.State, indexDir)
	}
	for _, dir := range []string{c.State, c.Index} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("lazy file system: %w", err)
		}
	}
	s := &Server{c: c, fuse: -1}
	if err := s.start(ctx); err != nil {
		s.closeFuse()
		return nil, fmt.Errorf("lazy file system: %w", err)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	s.done.Go(func() { s.supervise(run) })
	return s, nil
}

// start brings the server to where it has a mount and a child.
func (s *Server) start(ctx context.Context) error {
	ok, err := s.adopt()
	if err != nil {
		s.c.Log.WithError(err).Info("cannot take over the lazy file system of an earlier process")
	}
	if ok {
		s.reconnected = true
		if s.child != nil {
			return nil
		}
		return s.spawn(ctx, true)
	}
	s.closeFuse()
	if err := s.mount(); err != nil {
		return err
	}
	return s.spawn(ctx, false)
}

// adopt takes over the mount that the child of an earlier process serves, and the
// child as well if it is of the same binary as this process. It reports true if
// there is such a mount.
func (s *Server) adopt() (bool, error) {
	p, hello, fuse, err := connect(filepath.Join(s.c.State, socketName))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	s.fuse, s.device, s.resend = fuse, uint64(hello.off), hello.n == 1 && !s.c.noResend
	dev, mounted, err := device(s.c.Dir)
	if err == nil && (!mounted || dev != s.device) {
		err = fmt.Errorf("child %d serves another mount than that on %q", hello.id, s.c.Dir)
	}
	if err != nil {
		p.end()
		s.closeFuse()
		return false, err
	}
	id, err := binaryID()
	if err != nil {
		p.end()
		s.closeFuse()
		return false, err
	}
	// Without resend, its readers would be lost with it.
	if hello.code == linkVersion && (hello.digest == id || !s.resend) {
		s.child = p
		return true, nil
	}
	s.c.Log.WithField("pid", hello.id).Info("replacing the lazy file system process of another version")
	p.end()
	return s.resend, nil
}

// mount mounts the file system anew.
func (s *Server) mount() error {
	if err := detach(s.c.Dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(s.c.Dir, 0o700); err != nil {
		return err
	}
	fd, resend, err := mountFuse(s.c.Dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.fuse, s.resend = fd, resend && !s.c.noResend
	s.device, _, err = device(s.c.Dir)
	s.mu.Unlock()
	return err
}

// Reconnected tells whether Start found a living mount, so that overlays made of it
// earlier are good.
func (s *Server) Reconnected() bool { return s.reconnected }

// supervise talks to the child, and replaces it when it dies.
func (s *Server) supervise(ctx context.Context) {
	const slowest = 5 * time.Second
	delay := time.Duration(0)
	for {
		s.mu.Lock()
		child := s.child
		s.mu.Unlock()
		began := time.Now()
		if child != nil {
			err := child.serve(ctx, &s.c)
			if s.isClosing() {
				return
			}
			child.end()
			s.c.Log.WithError(err).WithField("pid", child.pid).WithField("output", tail(s.logPath())).
				Warn("lazy file system process has gone, starting another")
		}
		if time.Since(began) > slowest {
			delay = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		delay = min(max(2*delay, 50*time.Millisecond), slowest)
		if err := s.restart(ctx); err != nil {
			if s.isClosing() {
				return
			}
			s.c.Log.WithError(err).Error("cannot restart the lazy file system process")
		}
	}
}

// restart starts a child on the mount there is, or on a new one if that is not
// there or its readers cannot be helped.
func (s *Server) restart(ctx context.Context) error {
	s.mu.Lock()
	s.child = nil
	keep := s.resend && s.fuse >= 0
	dev := s.device
	s.mu.Unlock()
	if now, mounted, err := device(s.c.Dir); err != nil || !mounted || now != dev {
		keep = false
	}
	if keep {
		return s.spawn(ctx, true)
	}
	s.closeFuse() // aborts the connection, and with it what is blocked
	if err := s.mount(); err != nil {
		return err
	}
	if s.c.OnRemount != nil {
		s.c.OnRemount()
	}
	return s.spawn(ctx, false)
}

func (s *Server) logPath() string { return filepath.Join(s.c.State, logName) }

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

func (s *Server) closeFuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fuse >= 0 {
		_ = unix.Close(s.fuse) // nothing is written
		s.fuse = -1
	}
}

// Close leaves child and mount as they are: what is local is served, other reads
// wait for the next Start. Close before the Source ends, whose errors readers
// would see.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return nil
	}
	s.closing = true
	child := s.child
	s.mu.Unlock()
	if child != nil {
		child.hangUp()
	}
	s.cancel()
	s.done.Wait()
	// It may be another one: a restart may have been under way.
	s.mu.Lock()
	child = s.child
	s.mu.Unlock()
	if child != nil {
		child.release()
	}
	s.closeFuse()
	return nil
}

// Shutdown unmounts the file system and ends the child. Reads of overlays that
// still use it fail.
func (s *Server) Shutdown() error {
	err := s.Close()
	path := filepath.Join(s.c.State, socketName)
	// Before the mount goes: without it the child ends by itself, and we could not
	// wait for that.
	p, _, fuse, cerr := connect(path)
	if derr := detach(s.c.Dir); derr != nil && !errors.Is(derr, os.ErrNotExist) {
		err = errors.Join(err, derr)
	}
	if cerr == nil {
		p.end()
		err = errors.Join(err, unix.Close(fuse))
	}
	if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// connect connects to the child that listens at path.
func connect(path string) (p *peer, hello frame, fuse int, err error) {
	conn, err := dial(path)
	if err != nil {
		return nil, frame{}, -1, err
	}
	if err = conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err == nil {
		hello, fuse, err = readHello(conn)
	}
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return nil, frame{}, -1, errors.Join(err, conn.Close())
	}
	p, err = newPeer(conn, int(hello.id))
	if err != nil {
		return nil, frame{}, -1, errors.Join(err, conn.Close(), unix.Close(fuse))
	}
	return p, hello, fuse, nil
}
