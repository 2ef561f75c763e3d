// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

// affinityRig is a service with eight backends at a socket type.
type affinityRig struct {
	*sockRig
	family   int
	kind     int
	frontend netip.AddrPort
	servers  []netip.AddrPort
}

func eachAffinity(t *testing.T, f func(t *testing.T, r *affinityRig)) {
	eachFamily(t, func(t *testing.T, family int, loopback, frontend string) {
		for _, c := range []struct {
			name   string
			kind   int
			server func(testing.TB, string) netip.AddrPort
		}{{"tcp", unix.SOCK_STREAM, tcpServer}, {"udp", unix.SOCK_DGRAM, udpServer}} {
			t.Run(c.name, func(t *testing.T) {
				r := &affinityRig{sockRig: newSockRig(t, Options{}), family: family, kind: c.kind,
					frontend: netip.MustParseAddrPort(hostPort(frontend, 80))}
				for range 8 {
					r.servers = append(r.servers, c.server(t, hostPort(loopback, 0)))
				}
				f(t, r)
			})
		}
	})
}

func (r *affinityRig) program(affinity uint32, backends ...netip.AddrPort) {
	r.Helper()
	proto := layout.ProtoTCP
	if r.kind == unix.SOCK_DGRAM {
		proto = layout.ProtoUDP
	}
	r.affinity, r.id = affinity, 6 // always number 7
	r.service(proto, r.frontend.String(), 0, backends...)
}

// dial connects a new socket, or sends by one that is not connected, and
// returns who answered.
func (r *affinityRig) dial(connected bool) string {
	r.Helper()
	fd, err := unix.Socket(r.family, r.kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		r.Fatal(err)
	}
	to := sockaddr(r.family, r.frontend)
	switch {
	case connected || r.kind == unix.SOCK_STREAM:
		if err := unix.Connect(fd, to); err != nil {
			r.Fatal(err)
		}
		if r.kind == unix.SOCK_STREAM {
			break
		}
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			r.Fatal(err)
		}
	default:
		if err := unix.Sendto(fd, []byte("x"), 0, to); err != nil {
			r.Fatal(err)
		}
	}
	if r.kind == unix.SOCK_DGRAM {
		said, from := answer(r, fd)
		if from != r.frontend {
			r.Errorf("answer shows as %s", from)
		}
		return said
	}
	buf := make([]byte, 100)
	n, err := read(fd, buf)
	if err != nil {
		r.Fatal(err)
	}
	return string(buf[:n])
}

// keeps makes connections, which must all go to one backend, and returns it.
func (r *affinityRig) keeps() string {
	r.Helper()
	first := r.dial(true)
	for i := range 12 {
		if got := r.dial(i%2 == 0); got != first {
			r.Fatalf("connection %d went from %s to %s", i, first, got)
		}
	}
	return first
}

// spread tells how many backends many connections use.
func (r *affinityRig) spread() int {
	r.Helper()
	seen := map[string]bool{}
	for i := range 60 {
		seen[r.dial(i%2 == 0)] = true
	}
	return len(seen)
}

func (r *affinityRig) without(gone string) []netip.AddrPort {
	var rest []netip.AddrPort
	for _, b := range r.servers {
		if b.String() != gone {
			rest = append(rest, b)
		}
	}
	return rest
}

func TestSocketAffinity(t *testing.T) {
	eachAffinity(t, func(t *testing.T, r *affinityRig) {
		r.program(60, r.servers...)
		first := r.keeps()
		second := first
		for range 3 { // what is lost is never reached, and what one has then is kept
			r.program(60, r.without(second)...)
			got := r.keeps()
			if got == second {
				t.Fatalf("still with %s, which the service lost", got)
			}
			r.program(60, r.servers...)
			if back := r.keeps(); back != got {
				t.Errorf("from %s to %s", got, back)
			}
			second = got
		}
		r.program(0, r.servers...)
		if n := r.spread(); n < 6 {
			t.Errorf("without affinity 60 connections use but %d of 8 backends", n)
		}
		r.program(60, r.servers...)
		r.keeps()
	})
}

func TestSocketAffinityExpires(t *testing.T) {
	eachAffinity(t, func(t *testing.T, r *affinityRig) {
		r.program(15, r.servers...)
		first := r.keeps()
		moved := 0
		for range 10 {
			r.ago(14 * time.Second)
			if got := r.keeps(); got != first {
				t.Fatalf("%s, and not %s, within the timeout", got, first)
			}
			r.ago(16 * time.Second)
			if got := r.keeps(); got != first {
				moved++
				first = got
			}
		}
		if moved < 4 {
			t.Errorf("after its time the client went to another of 8 backends in %d of 10 cases", moved)
		}
	})
}

// ago makes every entry look that much older.
func (r *affinityRig) ago(d time.Duration) {
	r.Helper()
	if r.frontend.Addr().Is4() {
		affinityAgo[layout.V4](r, r.d.V4, d)
	} else {
		affinityAgo[layout.V6](r, r.d.V6, d)
	}
}

func affinityAgo[A layout.IP](r *affinityRig, m *FamilyMaps, d time.Duration) {
	r.Helper()
	found := 0
	err := Each(m.Affinity, func(k layout.AffinityKey[A], v layout.Affinity[A]) bool {
		found++
		v.Used -= layout.AffinityTick(d)
		if err := m.Affinity.Put(k, v); err != nil {
			r.Fatal(err)
		}
		return true
	})
	if err != nil || found != 1 {
		r.Fatalf("%d entries, want that of this namespace; %v", found, err)
	}
}

// A network namespace is a client of its own.
func TestSocketAffinityIsTheNamespaces(t *testing.T) {
	r := newSockRig(t, Options{})
	r.affinity = 60
	var backends []netip.AddrPort
	for port := uint16(1); port <= 100; port++ {
		backends = append(backends, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
	}
	svc := r.service(layout.ProtoUDP, "10.96.0.1:53", 0, backends...)
	chosen := func() netip.AddrPort {
		fd := socket(t, unix.AF_INET, unix.SOCK_DGRAM)
		if err := unix.Connect(fd, sockaddr(unix.AF_INET, svc)); err != nil {
			t.Error(err)
			return netip.AddrPort{}
		}
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Error(err)
			return netip.AddrPort{}
		}
		var slot layout.ConnectedV4
		if err := r.d.V4.Connected.Lookup(uint32(cookie%layout.ConnectedSlots), &slot); err != nil || slot.Cookie != cookie {
			t.Errorf("slot %v of socket %d: %v", slot, cookie, err)
		}
		return layout.AddrPort(slot.Peer.BackendAddr, slot.Peer.BackendPort)
	}
	here := chosen()
	seen := map[netip.AddrPort]bool{here: true}
	const namespaces = 8
	for range namespaces {
		inNetns(t, func() {
			first := chosen()
			for range 5 {
				if got := chosen(); got != first {
					t.Errorf("from %s to %s", first, got)
				}
			}
			seen[first] = true
		})
	}
	if len(seen) < 6 {
		t.Errorf("%d namespaces use but %v", namespaces, seen)
	}
	if got := chosen(); got != here {
		t.Errorf("from %s to %s", here, got)
	}
}
