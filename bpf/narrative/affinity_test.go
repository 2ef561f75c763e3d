// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"net/netip"
	"testing"
	"time"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// visits makes connections of a client to a frontend and returns the backends,
// and how often each was chosen.
func (h *host) visits(dev string, client netip.Addr, frontend netip.AddrPort, n int) map[netip.AddrPort]int {
	h.t.Helper()
	seen := map[netip.AddrPort]int{}
	for range n {
		h.port++
		seen[h.in(dev, h.opening(at(client, h.port), frontend)).dst]++
	}
	return seen
}

// keeps makes connections, which must all go to one backend, and returns it.
func (h *host) keeps(dev string, client netip.Addr, frontend netip.AddrPort) netip.AddrPort {
	h.t.Helper()
	seen := h.visits(dev, client, frontend, 12)
	if len(seen) != 1 {
		h.t.Fatalf("%s went to %v", client, seen)
	}
	for b := range seen {
		return b
	}
	return netip.AddrPort{}
}

// backendsOf are n backends of a pod, in no order.
func (h *host) backendsOf(n int) []where {
	var list []where
	for i := range n {
		list = append(list, local(at(h.podB, uint16(8000+(i*7)%n))))
	}
	return list
}

func without(list []where, gone netip.AddrPort) []where {
	var rest []where
	for _, b := range list {
		if b.AddrPort != gone {
			rest = append(rest, b)
		}
	}
	return rest
}

// ago makes every entry of affinity look as if its client had last connected
// that much earlier.
func (h *host) ago(d time.Duration) {
	h.t.Helper()
	if h.n == 4 {
		agoIn[layout.V4](h, node.d.V4, d)
	} else {
		agoIn[layout.V6](h, node.d.V6, d)
	}
}

func agoIn[A layout.IP](h *host, m *bpf.FamilyMaps, d time.Duration) {
	h.t.Helper()
	found := 0
	err := bpf.Each(m.Affinity, func(k layout.AffinityKey[A], v layout.Affinity[A]) bool {
		found++
		v.Used -= layout.AffinityTick(d)
		if err := m.Affinity.Put(k, v); err != nil {
			h.t.Fatal(err)
		}
		return true
	})
	if err != nil || found == 0 {
		h.t.Fatalf("%d entries, %v", found, err)
	}
}

func TestAffinity(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		vip, nodePort := at(h.vip, 80), at(h.node, 30080)
		backends := h.backendsOf(40)
		h.affinity = 60
		h.service(vip, layout.FrontendClusterIP, backends...)
		seen := map[netip.AddrPort]bool{}
		first := h.keeps("poda", h.podA, vip)
		for i := range 40 {
			client := h.outside
			for range i {
				client = client.Next()
			}
			seen[h.keeps("uplink", client, vip)] = true
		}
		if len(seen) < 15 {
			t.Errorf("40 clients use but %d of 40 backends", len(seen))
		}
		// Another frontend of the same port, and one of another service.
		h.service(nodePort, layout.FrontendNodePort, backends...)
		if got := h.keeps("poda", h.podA, nodePort); got != first {
			t.Errorf("%s at the node port, %s at the cluster IP", got, first)
		}
		h.id = 8
		other := map[netip.AddrPort]bool{}
		h.service(at(h.vip2, 80), layout.FrontendClusterIP, backends...)
		client := h.podB
		for range 20 {
			client = client.Next()
			other[h.keeps("poda", client, at(h.vip2, 80))] = true
		}
		if len(other) < 8 {
			t.Errorf("20 clients of another service use but %v", other)
		}
	})
}

func TestAffinityFollowsTheBackends(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		vip := at(h.vip, 80)
		h.affinity = 60
		backends := h.backendsOf(40)
		h.service(vip, layout.FrontendClusterIP, backends...)
		first := h.keeps("poda", h.podA, vip)
		// All others go, one after another, and it stands elsewhere each time.
		for _, b := range backends {
			if b.AddrPort != first && len(backends) > 2 {
				backends = without(backends, b.AddrPort)
				h.service(vip, layout.FrontendClusterIP, backends...)
				if got := h.keeps("poda", h.podA, vip); got != first {
					t.Fatalf("%s, and not %s, with %d backends", got, first, len(backends))
				}
			}
		}
		// More come, of another address, before and behind it.
		for _, a := range []netip.Addr{h.podB, h.podC, h.node2} {
			for port := uint16(1); port < 300; port += 3 {
				backends = append(backends, local(at(a, port)))
			}
		}
		h.service(vip, layout.FrontendClusterIP, backends...)
		if got := h.keeps("poda", h.podA, vip); got != first {
			t.Fatalf("%s, and not %s, with %d backends", got, first, len(backends))
		}
		// It goes: another, and that one stays when the first comes back.
		rest := without(backends, first)
		h.service(vip, layout.FrontendClusterIP, rest...)
		second := h.keeps("poda", h.podA, vip)
		if second == first {
			t.Fatal("still with a backend that the service lost")
		}
		h.service(vip, layout.FrontendClusterIP, backends...)
		if got := h.keeps("poda", h.podA, vip); got != second {
			t.Errorf("back from %s to %s", second, got)
		}
	})
}

// What stands where the backend stood, of another service for instance, is never
// reached.
func TestAffinityIsNotToAPlace(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		vip := at(h.vip, 80)
		h.affinity = 60
		h.service(vip, layout.FrontendClusterIP, h.backendsOf(4)...)
		h.keeps("poda", h.podA, vip)
		h.next = 0 // the very same elements
		strangers := []where{local(at(h.podB, 9000)), local(at(h.podB, 9001))}
		h.service(vip, layout.FrontendClusterIP, strangers...)
		if got := h.keeps("poda", h.podA, vip); got != strangers[0].AddrPort && got != strangers[1].AddrPort {
			t.Errorf("goes to %s", got)
		}
	})
}

func TestAffinityExpires(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		vip := at(h.vip, 80)
		h.affinity = 15
		h.service(vip, layout.FrontendClusterIP, h.backendsOf(40)...)
		first := h.keeps("poda", h.podA, vip)
		// Each connection begins the time anew.
		for range 5 {
			h.ago(14 * time.Second)
			if got := h.keeps("poda", h.podA, vip); got != first {
				t.Fatalf("%s, and not %s, within the timeout", got, first)
			}
		}
		// What goes on does not: only new connections do.
		h.port++
		c := at(h.podA, h.port)
		h.in("poda", h.opening(c, vip))
		h.ago(10 * time.Second)
		h.in("poda", h.data(c, vip, "more"))
		h.ago(6 * time.Second)
		moved := 0
		for range 20 {
			h.ago(16 * time.Second)
			if got := h.keeps("poda", h.podA, vip); got != first {
				moved++
				first = got
			}
		}
		if moved < 10 {
			t.Errorf("after its time a client went to another of 40 backends in %d of 20 cases", moved)
		}
		// The service's present timeout counts, not that of the last connection.
		h.ago(16 * time.Second)
		h.affinity = 60
		h.service(vip, layout.FrontendClusterIP, h.backendsOf(40)...)
		if got := h.keeps("poda", h.podA, vip); got != first {
			t.Errorf("%s, and not %s, when the timeout was raised", got, first)
		}
		// A clock that another processor read a little later.
		h.ago(-5 * time.Second)
		if got := h.keeps("poda", h.podA, vip); got != first {
			t.Errorf("%s, and not %s, from the future", got, first)
		}
	})
}

func TestAffinityIsSwitched(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		vip := at(h.vip, 80)
		backends := h.backendsOf(8)
		on := func(seconds uint32) {
			h.affinity = seconds
			h.service(vip, layout.FrontendClusterIP, backends...)
		}
		on(0)
		if seen := h.visits("poda", h.podA, vip, 60); len(seen) < 6 {
			t.Errorf("without affinity 60 connections use but %v", seen)
		}
		on(60)
		h.keeps("poda", h.podA, vip)
		on(0)
		if seen := h.visits("poda", h.podA, vip, 60); len(seen) < 6 {
			t.Errorf("without affinity again 60 connections use but %v", seen)
		}
		on(60)
		h.keeps("poda", h.podA, vip)
	})
}

// The host's own packets stand for the host, whatever their source, like its
// sockets.
func TestAffinityOfTheHost(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		vip := at(h.vip, 80)
		h.affinity = 60
		h.configure(func(c *layout.Config) { c.HostNetnsCookie = 1<<33 | 5 })
		var backends []where
		for port := uint16(8000); port < 8040; port++ {
			backends = append(backends, remote(at(h.podC, port)))
		}
		h.service(vip, layout.FrontendClusterIP, backends...)
		seen := map[netip.AddrPort]bool{}
		for _, source := range []netip.Addr{h.node, h.podA, h.podB} {
			for range 6 {
				h.port++
				verdict, out := h.run("uplink", "egress", h.build(h.opening(at(source, h.port), vip)))
				if verdict != redirect {
					t.Fatalf("verdict %s", verdictName(verdict))
				}
				seen[h.parse(out).dst] = true
			}
		}
		if len(seen) != 1 {
			t.Errorf("the host went to %v", seen)
		}
		if h.n == 4 {
			wantHostEntry[layout.V4](t, node.d.V4, 1<<33|5)
		} else {
			wantHostEntry[layout.V6](t, node.d.V6, 1<<33|5)
		}
	})
}

func wantHostEntry[A layout.IP](t *testing.T, m *bpf.FamilyMaps, cookie uint64) {
	t.Helper()
	var v layout.Affinity[A]
	if err := m.Affinity.Lookup(layout.NewSocketAffinityKey[A](cookie, 7), &v); err != nil {
		t.Fatal(err)
	}
	if age := v.Age(time.Duration(bpf.CoarseNow())); age > time.Minute {
		t.Errorf("used %s ago", age)
	}
}

// A client that is the backend it keeps goes on to reach itself.
func TestAffinityToItself(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		vip := at(h.vip, 80)
		h.affinity = 60
		h.service(vip, layout.FrontendClusterIP, local(at(h.podA, 8080)))
		bounces := func() {
			t.Helper()
			for range 5 {
				h.port++
				verdict, out := h.run("poda", "ingress", h.build(h.opening(at(h.podA, h.port), vip)))
				if verdict != redirect {
					t.Fatalf("verdict %s", verdictName(verdict))
				}
				if got := h.parse(out); got.dst != at(h.podA, 8080) || got.src.Addr() != h.node {
					t.Errorf("goes as %s", got)
				}
			}
		}
		bounces()
		h.service(vip, layout.FrontendClusterIP, local(at(h.podA, 8080)), local(at(h.podB, 8080)), remote(at(h.podC, 8080)))
		bounces()
	})
}

// A node port's client keeps a backend of another node, with another source.
func TestAffinityThroughANodePort(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.affinity = 60
		nodePort := at(h.node, 30080)
		var backends []where
		for port := uint16(8000); port < 8020; port++ {
			backends = append(backends, remote(at(h.podC, port)))
		}
		h.service(nodePort, layout.FrontendNodePort, backends...)
		seen := map[netip.AddrPort]bool{}
		for range 12 {
			h.port++
			got := h.through("uplink", "uplink", h.opening(at(h.outside, h.port), nodePort))
			if got.src.Addr() != h.node {
				t.Errorf("source %s", got.src)
			}
			seen[got.dst] = true
		}
		if len(seen) != 1 {
			t.Errorf("went to %v", seen)
		}
	})
}
