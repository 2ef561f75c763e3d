// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

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
		// With the address it is connected to, as without.
		if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(family, one)); err != nil {
			t.Fatal(err)
		}
		if said, from := answer(t, fd); from != one || said != b1.String() {
			t.Errorf("%s answered and shows as %s", said, from)
		}
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

// A datagram to another service is left alone: the answer could not arrive.
func TestUDPConnectedSendsElsewhere(t *testing.T) {
	r := newSockRig(t, Options{})
	one := r.service(layout.ProtoUDP, "10.96.0.1:53", 0, udpServer(t, "127.0.0.1:0"))
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 7, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer front.Close()
	two := r.service(layout.ProtoUDP, front.LocalAddr().String(), 0, udpServer(t, "127.0.0.1:0"))
	fd := socket(t, unix.AF_INET, unix.SOCK_DGRAM)
	if err := unix.Connect(fd, sockaddr(unix.AF_INET, one)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET, two)); err != nil {
		t.Fatal(err)
	}
	front.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := front.Read(make([]byte, 10)); err != nil {
		t.Errorf("the datagram went elsewhere: %v", err)
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
		// A backend that is addressed itself answers as itself.
		send(backend[0])
		if said, from := answer(t, fd); from != backend[0] || said != backend[0].String() {
			t.Errorf("%s answered and shows as %s", said, from)
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
	// The service has more backends, and this one stands elsewhere, far away.
	rest := slices.Clone(backends)
	for i := range 100 {
		rest = append(rest, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), 53))
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
