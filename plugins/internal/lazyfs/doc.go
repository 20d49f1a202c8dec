// Package lazyfs is the file system /aa/<rest of digest> of the objects that are
// on the way: the second data-only layer below the overlays of lazy images.
// Looking up and opening never block, reading does until the bytes are there.
//
//	containerd                        child (same binary, ChildCommand)
//	┌────────┐  ranges, cancels       ┌────────┐  requests   ┌────────┐
//	│ Server │◀──────────────────────▶│  Main  │◀───────────▶│ kernel │
//	│ Source │  done (unix socket)    │        │  /dev/fuse  └────────┘
//	└───┬────┘                        └───┬────┘
//	    └────▶ objects/, partial/ ────────┘ reads them itself
//
// The child is a process of its own so that containers outlive containerd: while
// it is away, what is local is served, and the other reads wait for its return.
// The child may die as well. Both hold the descriptor of /dev/fuse, hence the
// connection lives as long as one of them, and a new child tells the kernel to
// send again what the dead one had not answered (FUSE_NOTIFY_RESEND, Linux 6.9).
//
// All this is simple because the child has no state to lose:
//
//   - The parent answers FUSE_INIT, before there is a child.
//   - OPEN is answered by ENOSYS, upon which the kernel opens files without
//     asking: no handles, no round trip, and no task stuck in open(2), where it
//     could not be killed, while nobody serves.
//   - Node numbers are the first eight bytes of the digest, and what they stand
//     for is found in the index files ([WriteIndex]), or in objects/.
//   - Answers never change, so the kernel keeps names and attributes for ever, and
//     it does not matter what it has forgotten.
//
// Passthrough is not used: it would cost a level of file system stacking, and
// overlayfs on overlayfs would not work in containers.
package lazyfs

// ChildCommand is argv[1] of the process that serves the file system:
//
//	if len(os.Args) > 1 && os.Args[1] == lazyfs.ChildCommand {
//		os.Exit(lazyfs.Main(os.Args[2:]))
//	}
const ChildCommand = "starlight-lazyfs"
