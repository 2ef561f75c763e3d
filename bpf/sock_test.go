// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

// sockRig is a cgroup with the socket programs, and the backends it was given.
type sockRig struct {
	testing.TB
	d    *Dataplane
	next uint32 // free backend elements from here on
	id   uint32
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
		{ServiceID: r.id, FirstBackend: r.next, BackendCount: uint32(len(backends)), Flags: flags}})
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
	n, sa, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		t.Fatalf("receive: %v", err)
	}
	return string(buf[:n]), addrPort(sa)
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

func TestTCPConnect(t *testing.T) {
	eachFamily(t, func(t *testing.T, family int, loopback, frontend string) {
		r := newSockRig(t, Options{})
		backends := []netip.AddrPort{tcpServer(t, hostPort(loopback, 0)), tcpServer(t, hostPort(loopback, 0)), tcpServer(t, hostPort(loopback, 0))}
		svc := r.service(layout.ProtoTCP, hostPort(frontend, 80), layout.FrontendClusterIP, backends...)
		seen := map[string]int{}
		for range 60 {
			fd := socket(t, family, unix.SOCK_STREAM)
			if err := unix.Connect(fd, sockaddr(family, svc)); err != nil {
				t.Fatal(err)
			}
			if got := peer(t, fd); got != svc {
				t.Fatalf("getpeername says %s, dialled %s", got, svc)
			}
			buf := make([]byte, 100)
			n, err := unix.Read(fd, buf)
			if err != nil {
				t.Fatal(err)
			}
			seen[string(buf[:n])]++
			unix.Close(fd)
		}
		for _, b := range backends {
			if seen[b.String()] == 0 {
				t.Errorf("%s never chosen: %v", b, seen)
			}
		}
		// The backend itself is no service.
		fd := socket(t, family, unix.SOCK_STREAM)
		if err := unix.Connect(fd, sockaddr(family, backends[0])); err != nil {
			t.Fatal(err)
		}
		if got := peer(t, fd); got != backends[0] {
			t.Errorf("getpeername of a direct connection says %s", got)
		}
	})
}

func TestMPTCPConnect(t *testing.T) {
	r := newSockRig(t, Options{})
	backend := tcpServer(t, "127.0.0.1:0")
	svc := r.service(layout.ProtoTCP, "10.96.0.1:80", 0, backend)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	if err != nil {
		t.Skipf("no MPTCP sockets: %v", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(unix.AF_INET, svc)); err != nil {
		t.Fatal(err)
	}
	// What getpeername is asked about is not the socket that connected but the
	// one above it, which has no storage: the backend shows.
	if got := peer(t, fd); got != backend {
		t.Errorf("getpeername says %s", got)
	}
}

func TestNoBackendIsRefusedAtOnce(t *testing.T) {
	eachFamily(t, func(t *testing.T, family int, loopback, frontend string) {
		r := newSockRig(t, Options{})
		svc := r.service(layout.ProtoTCP, hostPort(frontend, 80), 0)
		fd := socket(t, family, unix.SOCK_STREAM)
		start := time.Now()
		if err := unix.Connect(fd, sockaddr(family, svc)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatalf("connect: %v", err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("refused after %s", d)
		}
		counters, err := r.d.ReadCounters()
		if err != nil || counters[layout.CounterKey{Reason: layout.ReasonNoBackend}].Packets != 1 {
			t.Errorf("counters: %v, %v", counters, err)
		}
		// The socket is as good as new.
		backend := tcpServer(t, hostPort(loopback, 0))
		if err := unix.Connect(fd, sockaddr(family, backend)); err != nil {
			t.Errorf("connect after a refusal: %v", err)
		}
		// UDP is left to the packet programs.
		svc = r.service(layout.ProtoUDP, hostPort(frontend, 53), 0)
		fd = socket(t, family, unix.SOCK_DGRAM)
		if err := unix.Connect(fd, sockaddr(family, svc)); errors.Is(err, unix.ECONNREFUSED) {
			t.Error("UDP connect refused")
		} else if err == nil && peer(t, fd) != svc {
			t.Errorf("peer %s", peer(t, fd))
		}
	})
}

func TestWithoutSetRetval(t *testing.T) {
	// The packet programs would answer; here nothing is at the address, but
	// the connect must get as far as the network, not fail at the hook.
	r := newSockRig(t, Options{NoSetRetval: true})
	svc := r.service(layout.ProtoTCP, "127.0.0.9:80", 0)
	fd := socket(t, unix.AF_INET, unix.SOCK_STREAM)
	if err := unix.Connect(fd, sockaddr(unix.AF_INET, svc)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect: %v", err) // by the loopback's own RST
	}
	if c, _ := r.d.ReadCounters(); len(c) != 0 {
		t.Errorf("refused at the hook: %v", c)
	}
}

func TestDisabledPasses(t *testing.T) {
	r := newSockRig(t, Options{})
	backend := udpServer(t, "127.0.0.1:0")
	svc := r.service(layout.ProtoUDP, "127.9.9.9:53", 0, backend)
	r.configure(0)
	fd := socket(t, unix.AF_INET, unix.SOCK_DGRAM)
	if err := unix.Connect(fd, sockaddr(unix.AF_INET, svc)); err != nil {
		t.Fatal(err)
	}
	r.configure(layout.ConfigEnabled) // would be seen now, had it been translated
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(fd, make([]byte, 10)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("answered by a backend: %v", err)
	}
}

func TestUDPConnected(t *testing.T) {
	eachFamily(t, func(t *testing.T, family int, loopback, frontend string) {
		r := newSockRig(t, Options{})
		b1, b2 := udpServer(t, hostPort(loopback, 0)), udpServer(t, hostPort(loopback, 0))
		one := r.service(layout.ProtoUDP, hostPort(frontend, 53), 0, b1)
		two := r.service(layout.ProtoUDP, hostPort(frontend, 54), 0, b2)
		same := r.service(layout.ProtoUDP, hostPort(frontend, 55), 0, b1)
		fd := socket(t, family, unix.SOCK_DGRAM)
		exchange := func(dial, backend netip.AddrPort) {
			t.Helper()
			if err := unix.Connect(fd, sockaddr(family, dial)); err != nil {
				t.Fatal(err)
			}
			if got := peer(t, fd); got != dial {
				t.Errorf("dialled %s, getpeername says %s", dial, got)
			}
			if _, err := unix.Write(fd, []byte("x")); err != nil {
				t.Fatal(err)
			}
			if said, from := answer(t, fd); from != dial || said != backend.String() {
				t.Errorf("dialled %s: %s answered and shows as %s", dial, said, from)
			}
		}
		exchange(one, b1)
		exchange(two, b2)
		exchange(same, b1) // the backend known by another name
		exchange(b1, b1)   // itself: what is remembered must not lie
		exchange(one, b1)
		// A UDP service is none for TCP.
		if err := unix.Connect(socket(t, family, unix.SOCK_STREAM), sockaddr(family, b1)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("TCP to a UDP port: %v", err)
		}
	})
}

// A socket connected to the frontend itself, because the connect was left
// alone, must not send to a backend: the answers would not match.
func TestUDPConnectedUntranslated(t *testing.T) {
	for _, c := range families {
		if c.name == "v6" {
			continue // ::1 is the one address to listen on
		}
		t.Run(c.name, func(t *testing.T) {
			r := newSockRig(t, Options{})
			front, backend := udpServer(t, "127.7.0.1:0"), udpServer(t, "127.0.0.1:0")
			fd := socket(t, c.family, unix.SOCK_DGRAM)
			if err := unix.Connect(fd, sockaddr(c.family, front)); err != nil {
				t.Fatal(err)
			}
			r.service(layout.ProtoUDP, front.String(), 0, backend) // from now on
			for _, send := range []func() error{
				func() error { _, err := unix.Write(fd, []byte("x")); return err },
				func() error { return unix.Sendto(fd, []byte("x"), 0, sockaddr(c.family, front)) },
			} {
				if err := send(); err != nil {
					t.Fatal(err)
				}
				if said, from := answer(t, fd); said != front.String() || from != front {
					t.Errorf("%s answered and shows as %s", said, from)
				}
			}
		})
	}
}

func TestUDPUnconnected(t *testing.T) {
	eachFamily(t, func(t *testing.T, family int, loopback, frontend string) {
		r := newSockRig(t, Options{})
		const services = 5
		var svc, backend [services]netip.AddrPort
		for i := range services {
			backend[i] = udpServer(t, hostPort(loopback, 0))
			svc[i] = r.service(layout.ProtoUDP, hostPort(frontend, 100+i), 0, backend[i])
		}
		plain := udpServer(t, hostPort(loopback, 0))
		fd := socket(t, family, unix.SOCK_DGRAM)
		send := func(to netip.AddrPort) {
			t.Helper()
			if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(family, to)); err != nil {
				t.Fatalf("send to %s: %v", to, err)
			}
		}
		// All are under way at once, and each answer finds its service.
		for range 3 {
			want := map[netip.AddrPort]string{plain: plain.String()}
			for i := range services {
				send(svc[i])
				want[svc[i]] = backend[i].String()
			}
			send(plain)
			for range services + 1 {
				said, from := answer(t, fd)
				if want[from] != said {
					t.Errorf("%s answered and shows as %s", said, from)
				}
				delete(want, from)
			}
			if len(want) != 0 {
				t.Errorf("no answer from %v", want)
			}
		}
	})
}

func TestUDPKeepsItsBackend(t *testing.T) {
	r := newSockRig(t, Options{})
	var backends []netip.AddrPort
	for range 8 {
		backends = append(backends, udpServer(t, "127.0.0.1:0"))
	}
	svc := r.service(layout.ProtoUDP, "10.96.0.1:53", 0, backends...)
	fd := socket(t, unix.AF_INET, unix.SOCK_DGRAM)
	ask := func(fd int) string {
		t.Helper()
		if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET, svc)); err != nil {
			t.Fatal(err)
		}
		said, from := answer(t, fd)
		if from != svc {
			t.Errorf("answer shows as %s", from)
		}
		return said
	}
	first := ask(fd)
	for range 20 {
		if got := ask(fd); got != first {
			t.Fatalf("went from %s to %s", first, got)
		}
	}
	seen := map[string]bool{}
	for range 60 {
		seen[ask(socket(t, unix.AF_INET, unix.SOCK_DGRAM))] = true
	}
	if len(seen) < 5 {
		t.Errorf("60 sockets use but %v", seen)
	}
	// The service is written anew, the backend stands elsewhere.
	var rest []netip.AddrPort
	for i := len(backends) - 1; i >= 0; i-- {
		rest = append(rest, backends[i])
	}
	r.service(layout.ProtoUDP, "10.96.0.1:53", 0, rest...)
	if got := ask(fd); got != first {
		t.Errorf("went from %s to %s, which stands elsewhere", first, got)
	}
	// It is lost: another, and then that one.
	rest = nil
	for _, b := range backends {
		if b.String() != first {
			rest = append(rest, b)
		}
	}
	r.service(layout.ProtoUDP, "10.96.0.1:53", 0, rest...)
	second := ask(fd)
	if second == first {
		t.Error("still with a backend that the service lost")
	}
	if got := ask(fd); got != second {
		t.Errorf("went from %s to %s", second, got)
	}
}

func TestMorePeersThanASocketRemembers(t *testing.T) {
	r := newSockRig(t, Options{})
	fd := socket(t, unix.AF_INET, unix.SOCK_DGRAM)
	const services = layout.SockPeers + 4
	translated := 0
	for i := range services {
		backend := udpServer(t, "127.0.0.1:0")
		// Frontends are addresses of the host, so that what is left alone
		// arrives too: at another server.
		front := udpServer(t, fmt.Sprintf("127.7.0.%d:53", i+1))
		svc := r.service(layout.ProtoUDP, front.String(), 0, backend)
		if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET, svc)); err != nil {
			t.Fatal(err)
		}
		said, from := answer(t, fd)
		if from != svc {
			t.Errorf("service %d: answer shows as %s", i, from)
		}
		if said == backend.String() {
			translated++
		}
	}
	if translated != layout.SockPeers {
		t.Errorf("%d of %d services translated", translated, services)
	}
}

func TestTwoServicesWithOneBackend(t *testing.T) {
	r := newSockRig(t, Options{})
	backend := udpServer(t, "127.0.0.1:0")
	front := udpServer(t, "127.7.0.2:53")
	one := r.service(layout.ProtoUDP, "127.7.0.1:53", 0, backend)
	two := r.service(layout.ProtoUDP, front.String(), 0, backend)
	fd := socket(t, unix.AF_INET, unix.SOCK_DGRAM)
	for _, c := range []struct{ to, says netip.AddrPort }{{one, backend}, {two, front}, {one, backend}} {
		if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET, c.to)); err != nil {
			t.Fatal(err)
		}
		if said, from := answer(t, fd); from != c.to || said != c.says.String() {
			t.Errorf("to %s: %s answered and shows as %s", c.to, said, from)
		}
	}
}

func TestHairpinIsLeftAlone(t *testing.T) {
	for _, proto := range []uint8{layout.ProtoTCP, layout.ProtoUDP} {
		for _, c := range []struct{ name, own, other, front string }{
			{"v4", "10.1.0.5:8080", "10.1.0.6:8081", "127.5.5.5:80"},
			{"v6", "[fd01::5]:8080", "[fd01::6]:8081", "[fd01::100]:80"},
		} {
			t.Run(fmt.Sprintf("%s-%d", c.name, proto), func(t *testing.T) {
				r := newSockRig(t, Options{})
				own, other := netip.MustParseAddrPort(c.own), netip.MustParseAddrPort(c.other)
				write := func(b netip.AddrPort, flags layout.BackendFlags) netip.AddrPort {
					ap := netip.MustParseAddrPort(c.front)
					if ap.Addr().Is4() {
						writeService[layout.V4](r, r.d.V4, proto, ap, 0, flags, []netip.AddrPort{b})
					} else {
						writeService[layout.V6](r, r.d.V6, proto, ap, 0, flags, []netip.AddrPort{b})
					}
					return ap
				}
				inNetns(t, func() {
					addAddress(t, own.Addr().String()+"/"+fmt.Sprint(own.Addr().BitLen()))
					addAddress(t, other.Addr().String()+"/"+fmt.Sprint(other.Addr().BitLen()))
					front := netip.MustParseAddrPort(c.front)
					if front.Addr().Is6() {
						addAddress(t, front.Addr().String()+"/128")
					}
					// A server at the frontend's own address tells that a call
					// was left alone.
					if proto == layout.ProtoTCP {
						tcpServer(t, c.own)
						tcpServer(t, c.front)
					} else {
						udpServer(t, c.own)
						udpServer(t, c.front)
					}
					family, typ := unix.AF_INET, unix.SOCK_STREAM
					if own.Addr().Is6() {
						family = unix.AF_INET6
					}
					if proto == layout.ProtoUDP {
						typ = unix.SOCK_DGRAM
					}
					talk := func() string {
						fd := socket(t, family, typ)
						if err := unix.Connect(fd, sockaddr(family, front)); err != nil {
							return err.Error()
						}
						unix.Write(fd, []byte("x"))
						buf := make([]byte, 100)
						n, err := unix.Read(fd, buf)
						if err != nil {
							return err.Error()
						}
						return string(buf[:n])
					}
					write(own, layout.BackendLocal)
					if got := talk(); got != c.front {
						t.Errorf("own backend: reached %s", got)
					}
					// A host's backend cannot be a pod; another node's neither.
					write(own, layout.BackendLocal|layout.BackendHostNetwork)
					if got := talk(); got != c.own {
						t.Errorf("host's backend: reached %s", got)
					}
					write(own, 0)
					if got := talk(); got != c.own {
						t.Errorf("remote backend: reached %s", got)
					}
					// Local, but nobody listens here: some other pod.
					write(other, layout.BackendLocal)
					if got := talk(); got == c.front {
						t.Error("other local backend: left alone")
					}
				})
			})
		}
	}
}

func TestHostOnlyFrontend(t *testing.T) {
	r := newSockRig(t, Options{})
	backend := tcpServer(t, "127.0.0.1:0")
	svc := r.service(layout.ProtoTCP, "127.0.0.1:30080", layout.FrontendNodePort|layout.FrontendHostOnly, backend)
	connect := func() error {
		return unix.Connect(socket(t, unix.AF_INET, unix.SOCK_STREAM), sockaddr(unix.AF_INET, svc))
	}
	if err := connect(); err != nil {
		t.Errorf("from the host: %v", err)
	}
	inNetns(t, func() {
		tcpServer(t, backend.String()) // would be reached
		if err := connect(); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("from a pod: %v", err)
		}
	})
}
