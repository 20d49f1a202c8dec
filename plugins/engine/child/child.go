// Package child is the way from a main package into the process of the lazy file
// system, which is the same binary started again and outlives its parent.
package child

import (
	"os"

	"github.com/starlight-delta/starlight/plugins/internal/lazyfs"
)

// Dispatch does not return if this process was started to be the lazy file
// system. A main package calls it before anything else.
func Dispatch() {
	if len(os.Args) > 1 && os.Args[1] == lazyfs.ChildCommand {
		os.Exit(lazyfs.Main(os.Args[2:]))
	}
}
