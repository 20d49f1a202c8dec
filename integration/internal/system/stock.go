package system

import (
	"context"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// Overlayfs is stock containerd with the snapshotter that everybody uses.
type Overlayfs struct{ Binaries tools.Binaries }

// Name implements [System].
func (Overlayfs) Name() string { return "overlayfs" }

// Publish implements [System].
func (Overlayfs) Publish(ctx context.Context, w *sandbox.World, versions []corpus.Image) ([]string, error) {
	return push(ctx, w, versions)
}

// Node implements [System].
func (o Overlayfs) Node(ctx context.Context, w *sandbox.World, _, name string) (*Node, error) {
	n, err := w.StartNode(ctx, sandbox.NodeConfig{Name: name, Binaries: o.Binaries})
	return &Node{Node: n, Snapshotter: "overlayfs"}, err
}

// Erofs is stock containerd with its snapshotter that makes an EROFS image of each
// layer while it unpacks it.
type Erofs struct {
	Binaries tools.Binaries
	// Path is the directory of a mkfs.erofs that reads tar files; "" if the
	// machine's own does.
	Path string
}

// Name implements [System].
func (Erofs) Name() string { return "erofs" }

// Publish implements [System].
func (Erofs) Publish(ctx context.Context, w *sandbox.World, versions []corpus.Image) ([]string, error) {
	return push(ctx, w, versions)
}

// What containerd's documentation recommends for erofs-utils 1.8.2 and later.
const erofsConfig = `[plugins.'io.containerd.service.v1.diff-service']
  default = ["erofs", "walking"]
[plugins.'io.containerd.differ.v1.erofs']
  mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux"
  snapshotter = "erofs"
  differ = "erofs"
`

// Node implements [System].
func (e Erofs) Node(ctx context.Context, w *sandbox.World, _, name string) (*Node, error) {
	c := sandbox.NodeConfig{Name: name, Binaries: e.Binaries, Config: erofsConfig}
	if e.Path != "" {
		c.Path = []string{e.Path}
	}
	n, err := w.StartNode(ctx, c)
	return &Node{Node: n, Snapshotter: "erofs"}, err
}
