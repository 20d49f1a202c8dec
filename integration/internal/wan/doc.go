// Package wan emulates a wide-area link between two network namespaces, for
// kernels without the netem qdisc: it needs root and /dev/net/tun only.
//
// Each namespace has one TUN device. A child process (a re-exec of the running
// binary, so that the garbage collector and the work of the caller cannot delay
// packets) forwards between the two. Each direction is a FIFO link with a rate, a
// drop-tail queue, a propagation delay and an optional loss probability, in exact
// virtual time: a packet that arrives at t leaves the queue at
// max(t, busyUntil)+len/rate and is delivered RTT/2 later.
//
// Namespaces have no names: they are held by descriptors of this process and by
// what runs in them, so nothing is left behind however the process ends, and any
// number of links exist side by side with the same addresses. To look into one
// from a shell: nsenter --net=$(Namespace.Path). Never use "ip netns exec": it
// remounts /sys, and runc finds no cgroups.
package wan
