package wan

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	device = "wan0"
	mtu    = 1500
	// queueLen of the device, in packets: the emulated queue must be the only
	// one that drops.
	queueLen = 10000
)

// openTUN makes the device of one end in the namespace of the calling thread,
// with checksum and segmentation offload (one read gives up to 64 KiB), and
// brings it and the loopback up.
func openTUN(addr string) (_ *os.File, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	err = ifreq(fd, device, unix.TUNSETIFF, func(r *unix.Ifreq) error {
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("TUNSETIFF: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
		return nil, fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(s)
	up := func(r *unix.Ifreq) error {
		r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		return nil
	}
	steps := []struct {
		what, dev string
		req       uint
		fill      func(*unix.Ifreq) error
	}{
		{"queue length", device, unix.SIOCSIFTXQLEN, func(r *unix.Ifreq) error { r.SetUint32(queueLen); return nil }},
		{"MTU", device, unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(mtu); return nil }},
		{"address", device, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(net.ParseIP(addr).To4()) }},
		{"netmask", device, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 255, 0}) }},
		{"up", device, unix.SIOCSIFFLAGS, up},
		{"loopback up", "lo", unix.SIOCSIFFLAGS, up},
	}
	for _, st := range steps {
		if err := ifreq(s, st.dev, st.req, st.fill); err != nil {
			return nil, fmt.Errorf("set %s of %s: %w", st.what, st.dev, err)
		}
	}
	return os.NewFile(uintptr(fd), "tun"), nil
}

func ifreq(fd int, dev string, req uint, fill func(*unix.Ifreq) error) error {
	r, err := unix.NewIfreq(dev)
	if err != nil {
		return err
	}
	if err := fill(r); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, req, r)
}
