// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

// sockRig is a cgroup with the socket programs, and the backends it was given.
type sockRig struct {
	testing.TB
	d    *Dataplane
	next uint32 // free backend elements from here on
	id   uint32
	// affinity is the seconds of services that are programmed.
	affinity uint32
}

func newSockRig(t testing.TB, o Options) *sockRig {
	t.Helper()
	needKernel(t)
	cgroup := testCgroup(t)
	joinCgroup(t, cgroup)
	o.SocketsOnly = true
	d := open(t, o)
	if _, err := d.AttachCgroup(cgroup); err != nil {
		t.Fatal(err)
	}
	r := &sockRig{TB: t, d: d}
	r.configure(layout.ConfigEnabled)
	return r
}

func (r *sockRig) configure(flags layout.ConfigFlags) {
	r.Helper()
	cookie, err := HostNetnsCookie()
	if err != nil {
		r.Fatal(err)
	}
	if err := r.d.WriteConfig(layout.Config{Flags: flags, HostNetnsCookie: cookie}); err != nil {
		r.Fatal(err)
	}
}

// service programs a frontend in front of backends and returns its address.
func (r *sockRig) service(proto uint8, frontend string, flags layout.FrontendFlags, backends ...netip.AddrPort) netip.AddrPort {
	r.Helper()
	ap := netip.MustParseAddrPort(frontend)
	if ap.Addr().Is4() {
		writeService[layout.V4](r, r.d.V4, proto, ap, flags, 0, backends)
	} else {
		writeService[layout.V6](r, r.d.V6, proto, ap, flags, 0, backends)
	}
	return ap
}

func writeService[A layout.IP](r *sockRig, m *FamilyMaps, proto uint8, frontend netip.AddrPort, flags layout.FrontendFlags,
	backendFlags layout.BackendFlags, backends []netip.AddrPort) {
	r.Helper()
	elems := make([]layout.Backend[A], len(backends))
	backends = slices.SortedFunc(slices.Values(backends), netip.AddrPort.Compare) // as the programs rely on
	for i, b := range backends {
		var ok bool
		if elems[i], ok = layout.NewBackend[A](b, backendFlags); !ok {
			r.Fatalf("%s is of the other family", b)
		}
	}
	if err := WriteBackends(m, r.next, elems); err != nil {
		r.Fatal(err)
	}
	key, _ := layout.NewFrontendKey[A](frontend, proto)
	r.id++
	err := UpdateFrontends(m, []layout.FrontendKey[A]{key}, []layout.Frontend{
		{ServiceID: r.id, FirstBackend: r.next, BackendCount: uint32(len(backends)), Flags: flags,
			AffinityTimeout: r.affinity}})
	if err != nil {
		r.Fatal(err)
	}
	r.next += uint32(len(backends))
}

// tcpServer answers each connection with its own address.
func tcpServer(t testing.TB, addr string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, l.Addr())
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// udpServer answers each datagram with its own address.
func udpServer(t testing.TB, addr string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo([]byte(c.LocalAddr().String()), from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// socket makes a socket with a receive timeout.
func socket(t testing.TB, family, typ int) int {
	t.Helper()
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// sockaddr writes an address for a socket of a family; an IPv4 address on a v6
// socket is v4-mapped.
func sockaddr(family int, ap netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}
	}
	return &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// peer is what getpeername says.
func peer(t testing.TB, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getpeername(fd)
	if err != nil {
		t.Fatalf("getpeername: %v", err)
	}
	return addrPort(sa)
}

// answer receives a datagram: what it says, and from where it seems to come.
func answer(t testing.TB, fd int) (said string, from netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 100)
	for {
		n, sa, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatalf("receive: %v", err)
		}
		return string(buf[:n]), addrPort(sa)
	}
}

// read reads once. With a receive timeout a read that waits is not begun again
// after a signal (signal(7)), and the Go runtime sends signals to its threads.
func read(fd int, buf []byte) (int, error) {
	for {
		if n, err := unix.Read(fd, buf); err != unix.EINTR {
			return n, err
		}
	}
}

// families are the ways of reaching a service of either family.
var families = []struct {
	name     string
	family   int // of the socket
	loopback string
	frontend string // address without port
}{
	{"v4", unix.AF_INET, "127.0.0.1", "10.96.0.1"},
	{"v6", unix.AF_INET6, "::1", "fd00:96::1"},
	{"v4-mapped", unix.AF_INET6, "127.0.0.1", "10.96.0.1"},
}

func eachFamily(t *testing.T, f func(t *testing.T, family int, loopback, frontend string)) {
	for _, c := range families {
		t.Run(c.name, func(t *testing.T) { f(t, c.family, c.loopback, c.frontend) })
	}
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }
