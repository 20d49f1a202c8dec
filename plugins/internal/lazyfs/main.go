package lazyfs

import (
	"container/list"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// The descriptors that a child inherits.
const (
	fuseFD   = 3
	listenFD = 4
)

// options of a child.
type options struct {
	objects, partial, state, index string
	device                         uint64
	resend, resume, observe        bool
}

// args are the arguments of the process.
func (o *options) args() []string {
	return []string{
		ChildCommand, "-objects", o.objects, "-partial", o.partial, "-state", o.state, "-index", o.index,
		"-device", strconv.FormatUint(o.device, 10),
		"-resend=" + strconv.FormatBool(o.resend), "-resume=" + strconv.FormatBool(o.resume),
		"-observe=" + strconv.FormatBool(o.observe),
	}
}

func parseOptions(args []string) (o options, err error) {
	f := flag.NewFlagSet(ChildCommand, flag.ContinueOnError)
	f.StringVar(&o.objects, "objects", "", "`directory` of the objects")
	f.StringVar(&o.partial, "partial", "", "`directory` of what is arriving")
	f.StringVar(&o.state, "state", "", "`directory` of what outlives a child")
	f.StringVar(&o.index, "index", "", "`directory` of the index files")
	f.Uint64Var(&o.device, "device", 0, "device `number` of the mount")
	f.BoolVar(&o.resend, "resend", false, "the kernel can send requests again")
	f.BoolVar(&o.resume, "resume", false, "there was a child before")
	f.BoolVar(&o.observe, "observe", false, "tell what is opened and read")
	return o, f.Parse(args)
}

// Main is the child process: it serves the file system until that is unmounted.
// args are those after ChildCommand. It returns the exit code.
func Main(args []string) int {
	// What the initialization of a large binary left behind is not needed here.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(48 << 20)
	debug.FreeOSMemory()
	dropText()
	// Who stops containerd by its terminal or its session does not stop containers.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)

	o, err := parseOptions(args)
	if err == nil {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lazy file system:", err)
		return 1
	}
	return 0
}

func run(o options) error {
	unix.CloseOnExec(fuseFD)
	id, err := binaryID()
	if err != nil {
		return err
	}
	n := &nodes{
		known: known{dir: o.index, maps: make(map[string]*mapping)},
		files: make(map[uint64]*list.Element),
	}
	if n.objects, err = openDir(o.objects); err != nil {
		return err
	}
	if n.partial, err = openDir(o.partial); err != nil {
		return err
	}
	if err := n.known.scan(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	lf := os.NewFile(listenFD, "listener")
	ln, err := net.FileListener(lf)
	if err = errors.Join(err, lf.Close()); err != nil {
		return err
	}
	uln, ok := ln.(*net.UnixListener)
	if !ok {
		return fmt.Errorf("listener is %T", ln)
	}
	hello := frame{typ: frameHello, code: linkVersion, id: uint64(os.Getpid()), digest: id, off: int64(o.device)}
	if o.resend {
		hello.n = 1
	}
	l := newLink(hello, fuseFD, func() { os.Exit(0) })
	failed := make(chan error, 2)
	go func() { failed <- l.accept(uln) }()
	if o.resume {
		if err := askResend(fuseFD); err != nil {
			return fmt.Errorf("ask the kernel to send again: %w", err)
		}
	}
	c := &child{fuse: fuseFD, nodes: n, link: l, observed: o.observe}
	if c.requests, err = openCounters(o.state); err != nil {
		fmt.Fprintln(os.Stderr, "requests are not counted:", err)
		c.requests = new(counters)
	}
	go func() { failed <- c.serve() }()
	return <-failed
}

func openDir(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %q: %w", path, err)
	}
	return fd, nil
}
