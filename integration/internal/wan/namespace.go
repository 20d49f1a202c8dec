package wan

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace with a loopback and one end of the link.
type Namespace struct {
	// Addr is the address of this end of the link.
	Addr string

	file *os.File
	tun  *os.File
	work chan func()
}

// newNamespace makes a namespace on a thread that then stays in it: processes are
// started from this thread, so that they are born in the namespace, and die
// (Pdeathsig is tied to the thread) when this process does.
func newNamespace(addr string) (*Namespace, error) {
	n := &Namespace{Addr: addr, work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := n.enterNew()
		ready <- err
		if err != nil {
			return
		}
		for f := range n.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	return n, nil
}

func (n *Namespace) enterNew() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	n.file = f
	if n.tun, err = openTUN(n.Addr); err != nil {
		return fmt.Errorf("TUN device: %w", err)
	}
	return nil
}

// Path names the namespace for nsenter --net= as long as the link exists.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}

// Start starts a command in the namespace. The command is killed when this
// process ends, and its process group can be signalled as one.
func (n *Namespace) Start(c *exec.Cmd) error {
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.Setpgid = true
	c.SysProcAttr.Pdeathsig = syscall.SIGKILL
	errc := make(chan error)
	n.work <- func() { errc <- c.Start() }
	return <-errc
}

// Run starts a command in the namespace and waits for it.
func (n *Namespace) Run(c *exec.Cmd) error {
	if err := n.Start(c); err != nil {
		return err
	}
	return c.Wait()
}

// inside runs f on a thread of its own in the namespace. Sockets belong to the
// namespace of the thread that made them, whoever uses them later.
func (n *Namespace) inside(f func() error) error {
	errc := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not be used again
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			errc <- fmt.Errorf("setns: %w", err)
			return
		}
		errc <- f()
	}()
	return <-errc
}

// Dial connects from inside the namespace to an address with a literal IP.
func (n *Namespace) Dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = n.inside(func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Listen listens inside the namespace.
func (n *Namespace) Listen(ctx context.Context, addr string) (l net.Listener, err error) {
	err = n.inside(func() error {
		var c net.ListenConfig
		l, err = c.Listen(ctx, "tcp", addr)
		return err
	})
	return l, err
}

// Client is an HTTP client that speaks from inside the namespace.
func (n *Namespace) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: n.Dial}}
}

func (n *Namespace) closeTUN() {
	if n.tun != nil {
		n.tun.Close()
		n.tun = nil
	}
}

func (n *Namespace) close() {
	n.closeTUN()
	close(n.work)
	n.file.Close()
}

// KillAll kills every process that is in the namespace: what daemons have left
// behind, such as shims.
func (n *Namespace) KillAll() error {
	var own unix.Stat_t
	if err := unix.Fstat(int(n.file.Fd()), &own); err != nil {
		return fmt.Errorf("stat namespace: %w", err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return err
	}
	for _, p := range procs {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil || st.Ino != own.Ino || st.Dev != own.Dev {
			continue // gone, or not ours
		}
		if pid, err := strconv.Atoi(strings.Split(p, "/")[2]); err == nil && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
		}
	}
	return nil
}
