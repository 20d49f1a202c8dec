// Command containerd is containerd with Starlight's plugins built in: upstream's
// daemon, upstream's plugins but for the two that ours replace under the same
// type and ID, and ours.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/containerd/containerd/v2/cmd/containerd/command"

	"github.com/starlight-delta/starlight/plugins/engine/child"
)

func main() {
	// The process of the lazy file system is this binary started again. It must
	// not become a containerd first.
	child.Dispatch()

	// Pulls make much that is short-lived. Memory at the edge is scarcer than the
	// little time that collecting it more often takes.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(40)
	}
	if err := command.App().Run(context.Background(), os.Args); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "containerd:", err)
		os.Exit(1)
	}
}
