// Package strong compresses what is made once and sent often as well as may be. Where the
// zstd program is installed, it does the work, in processes of the lowest priority: its
// strong levels have no equal in Go, and proxyd stays a static binary without it.
package strong

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

const (
	// level of the program: 3 MB/s; the next ones need larger windows than there are.
	level = 19
	// lowest priority (sched(7)): whatever else runs goes first.
	lowest = 19
)

// Compressor makes zstd frames that [wire.Decompress] decodes. It is safe for concurrent
// use.
type Compressor struct {
	turn    func(context.Context) (done func(), err error)
	log     *slog.Logger
	program string      // or ""
	broken  atomic.Bool // the program does not do what it should
	// encoders of our own compress a tenth less, at 10 to 20 MB/s. They take turns at
	// one processor: nobody waits for them.
	own      chan struct{}
	encoders sync.Pool
}

// New looks for the program. turn is called before this process compresses by itself: it
// returns when there is a processor for that, and the function to be called at the end.
func New(turn func(context.Context) (func(), error), log *slog.Logger) *Compressor {
	c := &Compressor{turn: turn, log: log, own: make(chan struct{}, 1), encoders: sync.Pool{New: func() any {
		enc, err := zstd.NewWriter(nil,
			zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(wire.MaxData),
			zstd.WithEncoderCRC(false), // every object has its sha256
			zstd.WithEncoderLevel(zstd.SpeedBestCompression))
		if err != nil {
			panic(err) // the options are constants
		}
		return enc
	}}}
	program, err := exec.LookPath("zstd")
	if err != nil {
		log.Info("images are compressed in the process; with the zstd program installed they become a tenth smaller")
		return c
	}
	c.program = program
	return c
}

// Parallel is how many calls of Compress at a time make sense.
func (c *Compressor) Parallel() int {
	if c.program == "" {
		return 1
	}
	return runtime.GOMAXPROCS(0)
}

// Compress appends src, of up to wire.MaxData bytes, as one frame to dst. Errors are those
// of ctx.
func (c *Compressor) Compress(ctx context.Context, dst, src []byte) ([]byte, error) {
	if c.program != "" && !c.broken.Load() {
		out, err := c.run(ctx, dst, src)
		if err == nil || ctx.Err() != nil {
			return out, context.Cause(ctx)
		}
		c.broken.Store(true)
		c.log.Warn("images are compressed in the process: the zstd program fails", "program", c.program, "error", err.Error())
	}
	select {
	case c.own <- struct{}{}:
		defer func() { <-c.own }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	done, err := c.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	enc := c.encoders.Get().(*zstd.Encoder)
	defer c.encoders.Put(enc)
	return enc.EncodeAll(src, dst), nil
}

// run has the program compress. What it says is not trusted.
func (c *Compressor) run(ctx context.Context, dst, src []byte) ([]byte, error) {
	out := &limited{b: bytes.NewBuffer(dst), room: len(src) + len(src)/128 + 1<<10}
	var says bytes.Buffer
	cmd := exec.CommandContext(ctx, c.program, "-q", "-"+strconv.Itoa(level), "--single-thread", "--no-check",
		"--stream-size="+strconv.Itoa(len(src)), "-c", "-")
	cmd.Env = []string{} // some variables of zstd's change what it does
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(src), out, &limited{b: &says, room: 1 << 10}
	// The process ends with the thread that started it, not only with this process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return dst, err
	}
	// If it fails, the process has the priority of this thread.
	_ = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, lowest)
	if err := cmd.Wait(); err != nil {
		return dst, fmt.Errorf("%w: %q", err, says.String())
	}
	frame := out.b.Bytes()
	check, err := wire.Decompress(nil, frame[len(dst):], len(src))
	if err != nil {
		return dst, err
	}
	if !bytes.Equal(check, src) {
		return dst, errors.New("its output has other contents")
	}
	return frame, nil
}

// limited takes no more than there is room for.
type limited struct {
	b    *bytes.Buffer
	room int
}

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.room {
		return 0, errors.New("more output than expected")
	}
	l.room -= len(p)
	return l.b.Write(p)
}
