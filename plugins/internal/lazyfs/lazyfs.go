// Package lazyfs is the file system of the objects that are on the way.
package lazyfs

import (
	"context"
	"errors"

	"github.com/containerd/log"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

var errBuilding = errors.New("lazyfs: under construction")

// ChildCommand is argv[1] of the process that serves the file system:
//
//	if len(os.Args) > 1 && os.Args[1] == lazyfs.ChildCommand {
//		os.Exit(lazyfs.Main(os.Args[2:]))
//	}
const ChildCommand = "starlight-lazyfs"

// Main is the child process. It returns the exit code.
func Main(args []string) int { return 1 }

// Source brings objects.
type Source interface {
	// Range blocks until bytes [off, off+n) of d are valid in Objects or Partial.
	// Its ctx ends when nobody waits any more. errdefs.ErrNotFound becomes
	// ENOENT, all other errors EIO.
	Range(ctx context.Context, d toc.Digest, off, n int64) error
}

// Config of a Server.
type Config struct {
	Dir     string // mount point, created if need be
	Objects string // directory with aa/rest
	Partial string // directory with <hex>: what is arriving
	State   string // directory of ours: socket, index/
	Source  Source
	Log     *log.Entry
	// OnRemount, if not nil, is called when the file system had to be mounted anew
	// under living readers, whose reads have failed: overlays that use the old
	// mount must be made again.
	OnRemount func()
}

// Server is the parent's side.
type Server struct{}

// Start mounts the file system, or takes over the one that the child of an
// earlier process serves.
func Start(ctx context.Context, c Config) (*Server, error) { return nil, errBuilding }

// Reconnected tells whether Start found a living mount.
func (s *Server) Reconnected() bool { return false }

// Close leaves child and mount running.
func (s *Server) Close() error { return errBuilding }

// Shutdown unmounts and ends the child.
func (s *Server) Shutdown() error { return errBuilding }

// IndexPath is the path of the index file called name ([A-Za-z0-9._-]+).
func IndexPath(state, name string) string { return "" }

// WriteIndex makes the objects known to the child: call it before a tree that
// names them is mounted, and remove the file when none is.
func WriteIndex(path string, objs []toc.Object) error { return errBuilding }
