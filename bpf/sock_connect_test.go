// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

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
			n, err := read(fd, buf)
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

// A socket whose slot is taken, and one for which there is no room even then.
func TestTakenSlots(t *testing.T) {
	eachFamily(t, func(t *testing.T, family int, loopback, frontend string) {
		r := newSockRig(t, Options{MaxSpilled: 1})
		backend := tcpServer(t, hostPort(loopback, 0))
		svc := r.service(layout.ProtoTCP, hostPort(frontend, 80), 0, backend)
		m := r.d.Family(4)
		if svc.Addr().Is6() {
			m = r.d.V6
			takeSlots[layout.V6](t, m)
		} else {
			takeSlots[layout.V4](t, m)
		}
		spilled := func() int {
			var n int
			var k uint64
			var v []byte
			for it := m.Spilled.Iterate(); it.Next(&k, &v); {
				n++
			}
			return n
		}
		var fds []int
		for range 3 {
			fd := socket(t, family, unix.SOCK_STREAM)
			fds = append(fds, fd)
			if err := unix.Connect(fd, sockaddr(family, svc)); err != nil {
				t.Fatal(err)
			}
		}
		for _, fd := range fds {
			if got := peer(t, fd); got != svc {
				t.Errorf("getpeername says %s", got)
			}
		}
		if n := spilled(); n != 1 {
			t.Errorf("%d spilled", n)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		if n := spilled(); n != 0 {
			t.Errorf("%d spilled after closing", n)
		}
	})
}

func takeSlots[A layout.IP](t *testing.T, m *FamilyMaps) {
	t.Helper()
	keys, values := make([]uint32, layout.ConnectedSlots), make([]layout.Connected[A], layout.ConnectedSlots)
	for i := range keys {
		keys[i], values[i].Cookie = uint32(i), 1<<63|uint64(i)
	}
	if err := UpdateBatch(m.Connected, keys, values); err != nil {
		t.Fatal(err)
	}
}

// Nothing is left of closed sockets.
func TestSlotsAreFreed(t *testing.T) {
	eachFamily(t, func(t *testing.T, family int, loopback, frontend string) {
		r := newSockRig(t, Options{})
		svc := r.service(layout.ProtoTCP, hostPort(frontend, 80), 0, tcpServer(t, hostPort(loopback, 0)))
		m, udp := r.d.Family(4), r.service(layout.ProtoUDP, hostPort(frontend, 80), 0, udpServer(t, hostPort(loopback, 0)))
		if svc.Addr().Is6() {
			m = r.d.V6
		}
		used := func() int {
			n := 0
			for i := range uint32(layout.ConnectedSlots) {
				b, err := m.Connected.LookupBytes(i)
				if err != nil {
					t.Fatal(err)
				}
				if [8]byte(b) != [8]byte{} {
					n++
				}
			}
			return n
		}
		var fds []int
		for range 5 {
			tcp, dgram := socket(t, family, unix.SOCK_STREAM), socket(t, family, unix.SOCK_DGRAM)
			fds = append(fds, tcp, dgram)
			if err := errors.Join(unix.Connect(tcp, sockaddr(family, svc)), unix.Connect(dgram, sockaddr(family, udp))); err != nil {
				t.Fatal(err)
			}
		}
		if n := used(); n != 10 {
			t.Errorf("10 sockets have %d slots", n)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		if n := used(); n != 0 {
			t.Errorf("%d slots are left", n)
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
	var taken int
	for i := range uint32(layout.ConnectedSlots) {
		if b, err := r.d.V4.Connected.LookupBytes(i); err != nil || [8]byte(b) != [8]byte{} {
			taken++
		}
	}
	if taken != 0 {
		t.Errorf("%d slots taken, which nobody frees", taken)
	}
	// What getpeername is asked about is not the socket that connected but the
	// one above it, which has no storage: the backend shows.
	if got := peer(t, fd); got != backend {
		t.Errorf("getpeername says %s", got)
	}
}

// TestWithoutMPTCPSock connects the same way through programs that cannot tell
// MPTCP: the connection works, and leaves the entry that the feature's report
// tells of. That of a TCP socket is freed as ever.
func TestWithoutMPTCPSock(t *testing.T) {
	r := newSockRig(t, Options{NoMPTCPSock: true, NoSetRetval: true})
	svc := r.service(layout.ProtoTCP, "10.96.0.1:80", 0, tcpServer(t, "127.0.0.1:0"))
	taken := func() (n int) {
		for i := range uint32(layout.ConnectedSlots) {
			if b, err := r.d.V4.Connected.LookupBytes(i); err != nil || [8]byte(b) != [8]byte{} {
				n++
			}
		}
		return n
	}
	plain := socket(t, unix.AF_INET, unix.SOCK_STREAM)
	if err := unix.Connect(plain, sockaddr(unix.AF_INET, svc)); err != nil {
		t.Fatal(err)
	}
	if got := peer(t, plain); got != svc {
		t.Errorf("getpeername says %s, dialled %s", got, svc)
	}
	unix.Close(plain)
	if n := taken(); n != 0 {
		t.Errorf("a closed TCP connection left %d entries", n)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	if err != nil {
		t.Skipf("no MPTCP sockets: %v", err)
	}
	err = unix.Connect(fd, sockaddr(unix.AF_INET, svc))
	unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	if n := taken(); n > 1 {
		t.Errorf("a closed MPTCP connection left %d entries", n)
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
