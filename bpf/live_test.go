// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

// Traffic of real sockets, between two pods of the host that the tests' own
// namespace is, while dataplanes come and go.

// livePod is a network namespace behind a veth of the host.
type livePod struct {
	name   string
	device int
	v4, v6 netip.Addr
	do     chan func()
}

// run runs f in the pod's namespace: sockets that it makes are the pod's.
func (p *livePod) run(f func()) {
	done := make(chan struct{})
	p.do <- func() { defer close(done); f() }
	<-done
}

func newLivePod(t *testing.T, name string, n byte) *livePod {
	t.Helper()
	p := &livePod{name: name, device: veth(t, name), do: make(chan func()),
		v4: netip.AddrFrom4([4]byte{10, 1, n, 2}), v6: netip.AddrFrom16([16]byte{0xfd, 1, 15: 2, 3: n})}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ready := make(chan int)
	go func() {
		runtime.LockOSThread() // never unlocked: the namespace ends with the thread
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			close(ready)
			return
		}
		ready <- unix.Gettid()
		for f := range p.do {
			f()
		}
	}()
	t.Cleanup(func() { close(p.do) })
	tid, ok := <-ready
	if !ok {
		t.Fatal("no namespace")
	}
	ns, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", tid))
	must(err)
	defer ns.Close()
	peer, err := netlink.LinkByName(name + "p")
	must(err)
	must(netlink.LinkSetNsFd(peer, int(ns.Fd())))
	host, err := netlink.LinkByName(name)
	must(err)
	gate4, gate6 := netip.AddrFrom4([4]byte{10, 1, n, 1}), netip.AddrFrom16([16]byte{0xfd, 1, 15: 1, 3: n})
	address := func(l netlink.Link, addrs ...netip.Addr) error {
		for _, a := range addrs {
			bits := 24
			if a.Is6() {
				bits = 64
			}
			err := netlink.AddrAdd(l, &netlink.Addr{Flags: unix.IFA_F_NODAD,
				IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}})
			if err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}
	must(address(host, gate4, gate6))
	p.run(func() {
		err = errors.Join(loUp(), address(peer, p.v4, p.v6))
		for _, gate := range []netip.Addr{gate4, gate6} {
			any := netip.PrefixFrom(gate, 0).Masked()
			err = errors.Join(err, netlink.RouteAdd(&netlink.Route{Gw: gate.AsSlice(),
				Dst: &net.IPNet{IP: any.Addr().AsSlice(), Mask: net.CIDRMask(0, gate.BitLen())}}))
		}
	})
	must(err)
	return p
}

// live is the world of two pods and a service, and the traffic in it.
type live struct {
	*testing.T
	client, server *livePod
	// translated: the process's sockets are, else its packets.
	sockets bool
	cgroup  string

	wait sync.WaitGroup
	quit chan struct{}
	open map[net.Conn]netip.AddrPort // that stay open, by what they dialled

	mu       sync.Mutex
	requests int
	failures []error
}

const (
	livePort    = 80
	liveBackend = 8080
)

func (p *livePod) addr(family int) netip.Addr {
	if family == 6 {
		return p.v6
	}
	return p.v4
}

func liveService(family int) netip.AddrPort {
	if family == 6 {
		return netip.AddrPortFrom(netip.MustParseAddr("fd09::1"), livePort)
	}
	return netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), livePort)
}

// newLive builds the world; servers answer.
func newLive(t *testing.T, sockets bool) *live {
	t.Helper()
	needKernel(t)
	for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile(path, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	l := &live{T: t, sockets: sockets, client: newLivePod(t, "livec", 1), server: newLivePod(t, "lives", 2), quit: make(chan struct{}), open: map[net.Conn]netip.AddrPort{}}
	if sockets {
		l.cgroup = testCgroup(t)
		joinCgroup(t, l.cgroup)
	}
	for _, family := range []int{4, 6} {
		at := netip.AddrPortFrom(l.server.addr(family), liveBackend).String()
		var tcp net.Listener
		var udp net.PacketConn
		var err1, err2 error
		l.server.run(func() {
			tcp, err1 = net.Listen("tcp", at)
			udp, err2 = net.ListenPacket("udp", at)
		})
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tcp.Close(); udp.Close() })
		go func() {
			for {
				c, err := tcp.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); io.Copy(c, c) }() //nolint:errcheck // the client tells
			}
		}()
		go func() {
			b := make([]byte, 100)
			for {
				n, from, err := udp.ReadFrom(b)
				if err != nil {
					return
				}
				udp.WriteTo(b[:n], from) //nolint:errcheck // the client tells
			}
		}()
	}
	return l
}

// put writes an element in the map's layout: what an earlier release had more
// stands before the present fields.
func put[K, V any](t testing.TB, m *ebpf.Map, key K, value V) {
	t.Helper()
	raw := func(p unsafe.Pointer, size uintptr, want uint32) []byte {
		b := make([]byte, want)
		copy(b[want-uint32(size):], unsafe.Slice((*byte)(p), size))
		return b
	}
	k := raw(unsafe.Pointer(&key), unsafe.Sizeof(key), m.KeySize())
	v := raw(unsafe.Pointer(&value), unsafe.Sizeof(value), m.ValueSize())
	if err := m.Put(k, v); err != nil {
		t.Fatal(err)
	}
}

// program fills the tables as an agent does.
func (l *live) program(d *Dataplane) {
	l.Helper()
	cookie, err := HostNetnsCookie()
	if err != nil {
		l.Fatal(err)
	}
	config := layout.Config{Flags: layout.ConfigEnabled | layout.ConfigFastPath, HostNetnsCookie: cookie,
		SnatPortFirst: 20000, SnatPortLast: 29999,
		TCPSynTimeout: 60, TCPEstablishedTimeout: 3600, TCPCloseTimeout: 10, UDPTimeout: 30, UDPStreamTimeout: 120}
	if d.Config.ValueSize() == uint32(unsafe.Sizeof(config)) {
		if err := d.WriteConfig(config); err != nil {
			l.Fatal(err)
		}
	} else {
		put(l, d.Config, uint32(0), config)
	}
	programFamily[layout.V4](l, d, d.V4)
	programFamily[layout.V6](l, d, d.V6)
}

func programFamily[A layout.IP](l *live, d *Dataplane, f *FamilyMaps) {
	l.Helper()
	backend, _ := layout.FromAddr[A](l.server.addr(f.Family))
	put(l, f.Backends, uint32(4), layout.Backend[A]{Addr: backend, Port: layout.Port(liveBackend), Flags: layout.BackendLocal})
	for _, proto := range []uint8{layout.ProtoTCP, layout.ProtoUDP} {
		key, _ := layout.NewFrontendKey[A](liveService(f.Family), proto)
		put(l, f.Frontends, key, layout.Frontend{ServiceID: 1, FirstBackend: 4, BackendCount: 1, Flags: layout.FrontendClusterIP})
	}
	for _, p := range []*livePod{l.client, l.server} {
		a, _ := layout.FromAddr[A](p.addr(f.Family))
		put(l, f.Routes, layout.RouteKey[A]{PrefixLen: uint32(8 * len(a)), Addr: a},
			layout.Route{Flags: layout.RoutePod | layout.RouteLocal, Ifindex: uint32(p.device)})
	}
}

// attach gives devices, and the cgroup, the programs.
func (l *live) attach(d *Dataplane) {
	l.Helper()
	for _, p := range []*livePod{l.client, l.server} {
		if _, err := d.AttachDevice(p.device, Pod); err != nil {
			l.Fatal(err)
		}
	}
	if l.sockets {
		if _, err := d.AttachCgroup(l.cgroup); err != nil {
			l.Fatal(err)
		}
	}
}

// liveTimeout of an exchange: longer than a TCP segment that is lost takes.
const liveTimeout = 3 * time.Second

func (l *live) fail(what string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	if err != nil && len(l.failures) < 20 {
		l.failures = append(l.failures, fmt.Errorf("%s %s: %w", time.Now().Format("15:04:05.000"), what, err))
	}
}

// start opens sockets that stay open, and new ones all the time.
func (l *live) start() {
	l.Helper()
	for _, family := range []int{4, 6} {
		for _, network := range []string{"tcp", "udp"} {
			name := fmt.Sprintf("%s v%d", network, family)
			dial := func() (net.Conn, error) {
				d := net.Dialer{Timeout: liveTimeout}
				return d.Dial(network, liveService(family).String())
			}
			for range 3 {
				c := l.dial(dial)
				if c == nil {
					l.Fatalf("%s: no connection: %v", name, l.failures)
				}
				l.Cleanup(func() { c.Close() })
				l.open[c] = liveService(family)
				l.every(time.Millisecond, "open "+name, func() error { return ask(c) })
			}
			l.every(time.Millisecond, "new "+name, func() error {
				c, err := l.dialErr(dial)
				if err != nil {
					return err
				}
				defer c.Close()
				if tcp, ok := c.(*net.TCPConn); ok {
					tcp.SetLinger(0) //nolint:errcheck // it only saves ports
				}
				if err := ask(c); err != nil {
					return err
				}
				return ask(c) // an established one
			})
		}
		l.unconnected(family)
	}
	l.Cleanup(func() { l.stop() })
}

// unconnected sends datagrams by a socket without a peer.
func (l *live) unconnected(family int) {
	l.Helper()
	var c net.PacketConn
	var err error
	l.client.run(func() { c, err = net.ListenPacket("udp", netip.AddrPortFrom(l.client.addr(family), 0).String()) })
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { c.Close() })
	to := net.UDPAddrFromAddrPort(liveService(family))
	n := 0
	l.every(time.Millisecond, fmt.Sprintf("unconnected udp v%d", family), func() error {
		n++
		text := fmt.Sprintf("datagram %d", n)
		if _, err := c.WriteTo([]byte(text), to); err != nil {
			return err
		}
		b := make([]byte, 100)
		if err := c.SetReadDeadline(time.Now().Add(liveTimeout)); err != nil {
			return err
		}
		m, from, err := c.ReadFrom(b)
		if err == nil && (string(b[:m]) != text || from.String() != to.String()) {
			err = fmt.Errorf("%q of %s", b[:m], from)
		}
		return err
	})
}

func (l *live) dial(dial func() (net.Conn, error)) net.Conn {
	c, err := l.dialErr(dial)
	if err != nil {
		l.fail("open", err)
		return nil
	}
	return c
}

func (l *live) dialErr(dial func() (net.Conn, error)) (c net.Conn, err error) {
	l.client.run(func() { c, err = dial() })
	return c, err
}

// ask makes an exchange on a connected socket.
func ask(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(liveTimeout)); err != nil {
		return err
	}
	text := []byte(fmt.Sprintf("%9d", time.Now().UnixNano()%1e9))
	if _, err := c.Write(text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != string(text) {
		return fmt.Errorf("%q came back for %q", b, text)
	}
	return nil
}

func (l *live) every(pace time.Duration, what string, f func() error) {
	l.wait.Go(func() {
		for {
			select {
			case <-l.quit:
				return
			case <-time.After(pace):
			}
			l.fail(what, f())
		}
	})
}

// peers asks the kernel whom the open sockets talk to.
func (l *live) peers() {
	l.Helper()
	for c, want := range l.open {
		raw, err := c.(interface {
			SyscallConn() (syscall.RawConn, error)
		}).SyscallConn()
		if err != nil {
			l.Fatal(err)
		}
		var peer unix.Sockaddr
		if err2 := raw.Control(func(fd uintptr) { peer, err = unix.Getpeername(int(fd)) }); err != nil || err2 != nil {
			l.Fatal(err, err2)
		}
		var have netip.AddrPort
		switch p := peer.(type) {
		case *unix.SockaddrInet4:
			have = netip.AddrPortFrom(netip.AddrFrom4(p.Addr), uint16(p.Port))
		case *unix.SockaddrInet6:
			have = netip.AddrPortFrom(netip.AddrFrom16(p.Addr), uint16(p.Port))
		}
		if have != want {
			l.Errorf("a socket that dialled %s has the peer %s", want, have)
		}
	}
}

// more waits until so many more requests have been made.
func (l *live) more(n int) {
	l.Helper()
	l.mu.Lock()
	want := l.requests + n
	l.mu.Unlock()
	eventually(l, fmt.Sprintf("%d requests", n), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.requests >= want || len(l.failures) > 0
	})
	l.check()
}

// check tells what failed so far.
func (l *live) check() {
	l.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := errors.Join(l.failures...); err != nil {
		l.Fatalf("after %d requests: %v", l.requests, err)
	}
}

func (l *live) stop() {
	l.mu.Lock()
	select {
	case <-l.quit:
	default:
		close(l.quit)
	}
	l.mu.Unlock()
	l.wait.Wait()
}
