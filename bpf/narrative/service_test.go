// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"net/netip"
	"testing"

	"github.com/millrace-project/millrace/bpf/layout"
)

// path is how a flow's packets go through the node, and as what. Each step is
// given the packet as the step before left it.
type path struct {
	h *host
	// Devices; an empty one stands for the host itself, which has no hook.
	clientDev, backendDev string
	client, frontend      netip.AddrPort
	backend               netip.AddrPort
	source                netip.AddrPort // what the backend sees; the client unless translated
}

// request sends a packet from the client and checks it as the backend gets it.
func (p *path) request(pkt packet) {
	h := p.h
	h.t.Helper()
	got := h.in(p.clientDev, pkt.from(p.client).to(p.frontend))
	h.want(got, pkt.from(p.client).to(p.backend))
	if p.backendDev != "" {
		got = h.out(p.backendDev, got)
		if p.source.Port() == 0 {
			p.source = at(p.source.Addr(), got.src.Port())
			if port := got.src.Port(); port < snatFirst || port > snatLast {
				h.t.Errorf("source port %d is not of the range", port)
			}
		}
		h.want(got, pkt.from(p.source).to(p.backend))
	}
}

// reply sends a packet from the backend and checks it as the client gets it.
func (p *path) reply(pkt packet) {
	h := p.h
	h.t.Helper()
	got := pkt.from(p.backend).to(p.source)
	if p.backendDev != "" {
		got = h.in(p.backendDev, got)
	}
	h.want(got, pkt.from(p.backend).to(p.client))
	if p.clientDev != "" {
		got = h.out(p.clientDev, got)
		h.want(got, pkt.from(p.frontend).to(p.client))
	}
}

// conversation is a whole flow: opening, data, close.
func (p *path) conversation() {
	h := p.h
	h.t.Helper()
	key := func() flow { return h.record(p.source, p.backend) }
	a, b := p.client, p.frontend
	if h.proto == layout.ProtoUDP {
		p.request(h.data(a, b, "question"))
		if f := key(); f.state != layout.CtNew || f.established {
			h.t.Errorf("after the question: %s, established %v", f.state, f.established)
		}
		p.request(h.data(a, b, "question again"))
		p.reply(h.data(b, a, "answer"))
		if f := key(); f.state != layout.CtReplied || f.established {
			h.t.Errorf("after the answer: %s, established %v", f.state, f.established)
		}
		p.request(h.data(a, b, "second question"))
		if f := key(); f.state != layout.CtEstablished || !f.established {
			h.t.Errorf("after the second question: %s, established %v", f.state, f.established)
		}
		p.reply(h.data(b, a, "second answer"))
		return
	}
	p.request(segment(a, b, syn, 1000, 0))
	p.request(segment(a, b, syn, 1000, 0))
	p.reply(segment(b, a, syn|ack, 5000, 1001))
	if f := key(); f.state != layout.CtReplied || f.established {
		h.t.Errorf("after SYN and ACK: %s, established %v", f.state, f.established)
	}
	p.request(segment(a, b, ack, 1001, 5001))
	if f := key(); f.state != layout.CtEstablished || !f.established {
		h.t.Errorf("after the handshake: %s, established %v", f.state, f.established)
	}
	p.request(h.data(a, b, "GET"))
	p.reply(h.data(b, a, "some odd answer"))
	p.request(segment(a, b, fin|ack, 1004, 5016))
	if f := key(); f.state != layout.CtClosing {
		h.t.Errorf("after one FIN: %s", f.state)
	}
	p.reply(h.data(b, a, "last words"))
	p.reply(segment(b, a, fin|ack, 5026, 1005))
	if f := key(); f.state != layout.CtClosed || !f.established {
		h.t.Errorf("after both FINs: %s, established %v", f.state, f.established)
	}
	p.request(segment(a, b, ack, 1005, 5027))
}

func TestPodToClusterIPOnThisNode(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.service(at(h.vip, 80), layout.FrontendClusterIP, local(at(h.podB, 8080)))
		c := at(h.podA, 40000)
		(&path{h: h, clientDev: "poda", backendDev: "podb", client: c, frontend: at(h.vip, 80), backend: at(h.podB, 8080), source: c}).conversation()
		f := h.record(c, at(h.podB, 8080))
		if f.outKind != [2]layout.DeviceKind{layout.DevicePod, layout.DevicePod} {
			t.Errorf("leaves by %v", f.outKind)
		}
		if f.flags&^layout.CtOrigIsLo != layout.CtDNAT|layout.CtCluster {
			t.Errorf("flags %s", f.flags)
		}
	})
}

func TestPodToClusterIPOnAnotherNode(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.service(at(h.vip, 80), layout.FrontendClusterIP, remote(at(h.podC, 8080)))
		c := at(h.podA, 40000)
		(&path{h: h, clientDev: "poda", backendDev: "uplink", client: c, frontend: at(h.vip, 80), backend: at(h.podC, 8080), source: c}).conversation()
		if f := h.record(c, at(h.podC, 8080)); f.outKind != [2]layout.DeviceKind{layout.DeviceUplink, layout.DevicePod} {
			t.Errorf("leaves by %v", f.outKind)
		}
	})
}

func TestSamePortIsKept(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.service(at(h.vip, 80), layout.FrontendClusterIP, local(at(h.podB, 80)))
		c := at(h.podA, 40000)
		(&path{h: h, clientDev: "poda", backendDev: "podb", client: c, frontend: at(h.vip, 80), backend: at(h.podB, 80), source: c}).conversation()
	})
}

func TestNodePortToBackendOnThisNode(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.service(at(h.node, 30080), layout.FrontendNodePort, local(at(h.podB, 8080)))
		c := at(h.outside, 40000)
		(&path{h: h, clientDev: "uplink", backendDev: "podb", client: c, frontend: at(h.node, 30080), backend: at(h.podB, 8080), source: c}).conversation()
		if f := h.record(c, at(h.podB, 8080)); f.flags&layout.CtCluster != 0 {
			t.Error("a client outside counts as one of the cluster")
		}
	})
}

func TestNodePortToBackendOnAnotherNode(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.service(at(h.node, 30080), layout.FrontendNodePort, remote(at(h.podC, 8080)))
		p := &path{h: h, clientDev: "uplink", backendDev: "uplink", client: at(h.outside, 40000), frontend: at(h.node, 30080),
			backend: at(h.podC, 8080), source: at(h.node, 0)}
		p.conversation()
		f := h.record(p.source, p.backend)
		if f.flags&layout.CtSNAT == 0 || f.client != p.client || f.frontend != p.frontend {
			t.Errorf("record %+v", f)
		}
	})
}

func TestHostNetworkBackend(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		b := at(h.node, 9090)
		h.service(at(h.vip, 80), layout.FrontendClusterIP, where{b, layout.BackendLocal | layout.BackendHostNetwork})
		c := at(h.podA, 40000)
		(&path{h: h, clientDev: "poda", client: c, frontend: at(h.vip, 80), backend: b, source: c}).conversation()
		if f := h.record(c, b); f.outKind[layout.CtOrig] != layout.DeviceNone {
			t.Error("packets to the host itself count as having left it")
		}
		// From outside, through a node port.
		h.service(at(h.node, 30080), layout.FrontendNodePort, where{b, layout.BackendLocal | layout.BackendHostNetwork})
		c = at(h.outside, 40000)
		(&path{h: h, clientDev: "uplink", client: c, frontend: at(h.node, 30080), backend: b, source: c}).conversation()
	})
}

// A service's address and port may be the backend's own: a host-network backend
// with an external address of its node.
func TestFrontendIsTheBackend(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		b := at(h.node, 80)
		h.service(b, layout.FrontendExternalIP, where{b, layout.BackendLocal | layout.BackendHostNetwork})
		c := at(h.outside, 40000)
		(&path{h: h, clientDev: "uplink", client: c, frontend: b, backend: b, source: c}).conversation()
	})
}

func TestFrontendIsTheBackendOnAnotherNode(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		b := at(h.node2, 80)
		h.service(b, layout.FrontendExternalIP, where{b, layout.BackendHostNetwork})
		(&path{h: h, clientDev: "uplink", backendDev: "uplink", client: at(h.outside, 40000), frontend: b, backend: b,
			source: at(h.node, 0)}).conversation()
	})
}

func TestHairpin(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		c, b := at(h.podA, 40000), at(h.podA, 8080)
		h.service(at(h.vip, 80), layout.FrontendClusterIP, local(b))
		bounce := func(p packet) packet {
			t.Helper()
			frame := h.build(p)
			verdict, out := h.run("poda", "ingress", frame)
			if verdict != redirect {
				t.Fatalf("%s: %s, want redirect", p, verdictName(verdict))
			}
			if string(out[:6]) != string(peerMAC) || string(out[6:12]) != string(node.devs["poda"].HardwareAddr) {
				t.Errorf("goes from % x to % x", out[6:12], out[:6])
			}
			return h.parse(out)
		}
		got := bounce(h.opening(c, at(h.vip, 80)))
		source := got.src
		if source.Addr() != h.node || source.Port() < snatFirst || source.Port() > snatLast {
			t.Errorf("source %s", source)
		}
		h.want(got, h.opening(source, b))
		answer := h.data(b, source, "answer")
		if h.proto == layout.ProtoTCP {
			answer = segment(b, source, syn|ack, 5000, 1001)
		}
		h.want(bounce(answer), answer.from(at(h.vip, 80)).to(c))
		h.want(bounce(h.data(c, at(h.vip, 80), "more")), h.data(source, b, "more"))
		if f := h.record(source, b); !f.established {
			t.Error("not established")
		}
		h.want(bounce(h.data(b, source, "answer")), h.data(at(h.vip, 80), c, "answer"))
	})
}

// A pod that dials another pod behind its own service's address, from the same
// port by two services.
func TestTwoFrontendsToOneBackend(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		c, b := at(h.podA, 40000), at(h.podB, 8080)
		for _, vip := range []netip.Addr{h.vip, h.vip2} {
			h.service(at(vip, 80), layout.FrontendClusterIP, local(b))
		}
		one := h.through("poda", "podb", h.opening(c, at(h.vip, 80)))
		two := h.through("poda", "podb", h.opening(c, at(h.vip2, 80)))
		h.want(one, h.opening(c, b))
		if two.src.Addr() != h.podA || two.src.Port() == c.Port() || two.dst != b {
			t.Fatalf("the second flow is %s, the first %s", two, one)
		}
		h.want(h.through("podb", "poda", h.data(b, c, "to one")), h.data(at(h.vip, 80), c, "to one"))
		h.want(h.through("podb", "poda", h.data(b, two.src, "to two")), h.data(at(h.vip2, 80), c, "to two"))
		h.want(h.through("poda", "podb", h.data(c, at(h.vip2, 80), "more")), h.data(two.src, b, "more"))
		h.want(h.through("poda", "podb", h.data(c, at(h.vip, 80), "more")), h.data(c, b, "more"))
	})
}

// The same from outside to a backend elsewhere, where source and stack tuple differ.
func TestTwoNodePortsToOneRemoteBackend(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		c, b := at(h.outside, 40000), at(h.podC, 8080)
		h.service(at(h.node, 30080), layout.FrontendNodePort, remote(b))
		h.service(at(h.node, 30081), layout.FrontendNodePort, remote(b))
		one := h.through("uplink", "uplink", h.opening(c, at(h.node, 30080)))
		two := h.through("uplink", "uplink", h.opening(c, at(h.node, 30081)))
		if one.src.Addr() != h.node || two.src.Addr() != h.node || one.src == two.src {
			t.Fatalf("sources %s and %s", one.src, two.src)
		}
		h.want(h.through("uplink", "uplink", h.data(b, one.src, "to one")), h.data(at(h.node, 30080), c, "to one"))
		h.want(h.through("uplink", "uplink", h.data(b, two.src, "to two")), h.data(at(h.node, 30081), c, "to two"))
		h.want(h.through("uplink", "uplink", h.data(c, at(h.node, 30081), "more")), h.data(two.src, b, "more"))
	})
}

func TestBackendIsKept(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		vip := at(h.vip, 80)
		var many []where
		for port := uint16(8000); port < 8064; port++ {
			many = append(many, local(at(h.podB, port)))
		}
		h.service(vip, layout.FrontendClusterIP, many...)
		c := at(h.podA, 40000)
		b := h.through("poda", "podb", h.opening(c, vip)).dst
		for range 8 {
			if got := h.through("poda", "podb", h.opening(c, vip)).dst; got != b {
				t.Fatalf("the first packet again goes to %s, not %s", got, b)
			}
		}
		// The service gets other backends, and then none.
		h.service(vip, layout.FrontendClusterIP, remote(at(h.podC, 8080)))
		h.want(h.through("poda", "podb", h.data(c, vip, "more")), h.data(c, b, "more"))
		h.service(vip, layout.FrontendClusterIP)
		h.want(h.through("poda", "podb", h.data(c, vip, "more")), h.data(c, b, "more"))
		h.want(h.through("podb", "poda", h.data(b, c, "answer")), h.data(vip, c, "answer"))
	})
}

func TestAllBackendsAreChosen(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		vip := at(h.vip, 80)
		var many []where
		for port := uint16(8000); port < 8004; port++ {
			many = append(many, local(at(h.podB, port)))
		}
		h.service(vip, layout.FrontendClusterIP, many...)
		seen := make(map[netip.AddrPort]int)
		for port := uint16(40000); port < 40400; port++ {
			seen[h.in("poda", h.opening(at(h.podA, port), vip)).dst]++
		}
		for _, b := range many {
			if n := seen[b.AddrPort]; n < 50 || n > 150 {
				t.Errorf("%s was chosen %d times of 400", b.AddrPort, n)
			}
		}
	})
}

func TestBackendsArrayIsShort(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.next = 8000 // nothing was written there
		h.service(at(h.vip, 80), layout.FrontendClusterIP, local(at(h.podB, 0)))
		if verdict, _ := h.run("poda", "ingress", h.build(h.opening(at(h.podA, 40000), at(h.vip, 80)))); verdict != drop {
			t.Errorf("verdict %s", verdictName(verdict))
		}
		h.wantCounted(layout.ReasonBackendMissing, 1)
	})
}
