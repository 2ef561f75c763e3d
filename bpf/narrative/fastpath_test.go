// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"bytes"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/millrace-project/millrace/bpf/layout"
)

// leg is a direction of a flow through the node.
type leg struct {
	in, out string
	p       packet
}

// fastStory is a flow of the cluster and both its legs.
type fastStory struct {
	name string
	path path
}

func fastStories(h *host) []fastStory {
	c := at(h.podA, 40000)
	return []fastStory{
		{"plain to a pod", path{h: h, clientDev: "poda", backendDev: "podb", client: c, frontend: at(h.podB, 8080), backend: at(h.podB, 8080), source: c}},
		{"plain to another node", path{h: h, clientDev: "poda", backendDev: "uplink", client: c, frontend: at(h.podC, 8080), backend: at(h.podC, 8080), source: c}},
		{"service on this node", path{h: h, clientDev: "poda", backendDev: "podb", client: c, frontend: at(h.vip, 80), backend: at(h.podB, 8080), source: c}},
		{"service on another node", path{h: h, clientDev: "poda", backendDev: "uplink", client: c, frontend: at(h.vip, 80), backend: at(h.podC, 8080), source: c}},
		{"node port, in and out by the uplink", path{h: h, clientDev: "uplink", backendDev: "uplink", client: at(h.node2, 40000), frontend: at(h.node, 30080),
			backend: at(h.podC, 8080), source: at(h.node, 0)}},
	}
}

// start programs the story's service and establishes its flow.
func (s *fastStory) start(h *host) {
	h.t.Helper()
	s.program(h)
	h.established(s.path.clientDev, s.path.backendDev, &s.path)
}

// program programs the story's service.
func (s *fastStory) program(h *host) {
	h.t.Helper()
	p := &s.path
	p.h = h
	if p.frontend != p.backend {
		flags := layout.BackendFlags(0)
		if p.backendDev == "podb" {
			flags = layout.BackendLocal
		}
		h.service(p.frontend, layout.FrontendClusterIP, where{p.backend, flags})
	}
}

// legs are a packet of each direction as it enters.
func (s *fastStory) legs(h *host) []leg {
	return []leg{
		{s.path.clientDev, s.path.backendDev, h.data(s.path.client, s.path.frontend, "there")},
		{s.path.backendDev, s.path.clientDev, h.data(s.path.backend, s.path.source, "and back again")},
	}
}

func TestFastPathEqualsTheSlowOne(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		for _, s := range fastStories(h) {
			t.Run(s.name, func(t *testing.T) {
				h := newHost(t, h.family, h.proto)
				s.start(h)
				for _, l := range s.legs(h) {
					h.configure(func(c *layout.Config) { c.Flags &^= layout.ConfigFastPath })
					slow := h.build(h.through(l.in, l.out, l.p))
					h.fastPath()
					verdict, fast := h.run(l.in, "ingress", h.build(l.p))
					if verdict != redirect {
						t.Fatalf("%s: %s, want redirect", l.p, verdictName(verdict))
					}
					h.parse(fast)
					if !bytes.Equal(fast[14:], slow[14:]) {
						t.Errorf("slow % x\nfast % x", slow[14:], fast[14:])
					}
					if l.out == "uplink" && (!bytes.Equal(fast[:6], peerMAC) || !bytes.Equal(fast[6:12], node.devs["uplink"].HardwareAddr)) {
						t.Errorf("goes from % x to % x", fast[6:12], fast[:6])
					}
				}
				h.wantCounted(layout.ReasonFib, 0)
			})
		}
	})
}

func TestFastPathWaitsForBothConfirmations(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.fastPath()
		p := h.podToPod()
		verdict := func(dev string, pkt packet) uint32 {
			v, _ := h.run(dev, "ingress", h.build(pkt))
			return v
		}
		// Established, but neither direction was seen to leave.
		first := h.in("poda", h.opening(p.client, p.frontend))
		if h.proto == layout.ProtoTCP {
			h.in("podb", segment(p.backend, p.client, syn|ack, 5000, 1001))
			h.in("poda", segment(p.client, p.frontend, ack, 1001, 5001))
		} else {
			h.in("podb", h.data(p.backend, p.client, "answer"))
			h.in("poda", h.data(p.client, p.frontend, "question"))
		}
		if !h.record(p.source, p.backend).established {
			t.Fatal("not established")
		}
		question, answer := h.data(p.client, p.frontend, "x"), h.data(p.backend, p.client, "y")
		if v := verdict("poda", question); v != pass {
			t.Errorf("unconfirmed: %s", verdictName(v))
		}
		h.out("podb", h.data(first.src, p.backend, "x"))
		if v := verdict("poda", question); v != pass {
			t.Errorf("one direction confirmed: %s", verdictName(v))
		}
		h.out("poda", h.data(p.backend, p.client, "y"))
		if v := verdict("poda", question); v != redirect {
			t.Errorf("both confirmed: %s", verdictName(v))
		}
		if v := verdict("podb", answer); v != redirect {
			t.Errorf("both confirmed, the answer: %s", verdictName(v))
		}
	})
}

// netfilter must see a handshake to its end: it forgets a half-open connection
// after a minute, and a FIN of a connection that it does not know is invalid.
func TestLastOfTheHandshakeTakesTheStack(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		for _, s := range fastStories(h) {
			t.Run(s.name, func(t *testing.T) {
				h := newHost(t, h.family, h.proto)
				s.program(h)
				h.fastPath()
				p := &s.path
				p.request(segment(p.client, p.frontend, syn, 1000, 0))
				p.reply(segment(p.frontend, p.client, syn|ack, 5000, 1001))
				last := h.build(segment(p.client, p.frontend, ack, 1001, 5001))
				if v, _ := h.run(p.clientDev, "ingress", last); v != pass {
					t.Errorf("the ACK that establishes: %s, want pass", verdictName(v))
				}
				if v, _ := h.run(p.clientDev, "ingress", h.build(h.data(p.client, p.frontend, "x"))); v != redirect {
					t.Errorf("what follows: %s, want redirect", verdictName(v))
				}
			})
		}
	})
}

func TestPacketsThatNeedTheStack(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		for _, s := range fastStories(h)[2:4] {
			t.Run(s.name, func(t *testing.T) {
				h := newHost(t, h.family, h.proto)
				s.start(h)
				h.fastPath()
				plain := s.legs(h)[0].p
				variants := map[string]func(*packet){
					"hop limit at its end": func(p *packet) { p.ttl = 1 },
					"options":              func(p *packet) { p.options = true },
					"fragment":             func(p *packet) { p.fragment = first; p.payload = strings.Repeat("x", 64) },
					"larger than the MTU":  func(p *packet) { p.payload = strings.Repeat("x", 1600) },
				}
				if h.proto == layout.ProtoTCP {
					variants["SYN"] = func(p *packet) { p.flags = syn }
					variants["SYN and ACK"] = func(p *packet) { p.flags = syn | ack }
				}
				for name, change := range variants {
					p := plain
					change(&p)
					if v, _ := h.run("poda", "ingress", h.build(p)); v != pass {
						t.Errorf("%s: %s", name, verdictName(v))
					}
				}
				if v, _ := h.run("poda", "ingress", h.build(plain)); v != redirect {
					t.Errorf("a plain packet: %s", verdictName(v))
				}
				if h.proto == layout.ProtoTCP {
					// The host's conntrack must see the end, and what follows it.
					for _, flags := range []uint8{fin | ack, ack} {
						p := plain
						p.flags = flags
						if v, _ := h.run("poda", "ingress", h.build(p)); v != pass {
							t.Errorf("flags %x at the end: %s", flags, verdictName(v))
						}
					}
				}
			})
		}
	})
}

// Of a packet that stands for many, each one's size counts.
func TestFastPathTakesGSO(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		for _, s := range fastStories(h)[2:4] {
			h := newHost(t, h.family, h.proto)
			s.start(h)
			h.fastPath()
			p := s.legs(h)[0].p
			p.payload = strings.Repeat("x", 3000)
			frame := h.build(p)
			copy(frame, node.devs["poda"].HardwareAddr)
			for size, want := range map[uint32]uint32{1400: redirect, 1490: pass} {
				if v, _ := h.runGSO("poda", "ingress", frame, size); v != want {
					t.Errorf("%s, segments of %d: %s, want %s", s.name, size, verdictName(v), verdictName(want))
				}
			}
		}
	})
}

func TestFlowsOfOthersStaySlow(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.fastPath()
		h.service(at(h.node, 30080), layout.FrontendNodePort, local(at(h.podB, 8080)))
		p := &path{h: h, clientDev: "uplink", backendDev: "podb", client: at(h.outside, 40000), frontend: at(h.node, 30080),
			backend: at(h.podB, 8080), source: at(h.outside, 40000)}
		h.established("uplink", "podb", p)
		p.request(h.data(p.client, p.frontend, "x"))
		p.reply(h.data(p.backend, p.client, "y"))
	})
}

func TestFastPathWithoutRoute(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		s := fastStories(h)[3]
		s.start(h)
		h.fastPath()
		index := node.devs["uplink"].Index
		neigh := &netlink.Neigh{LinkIndex: index, IP: h.node2.AsSlice()}
		if err := netlink.NeighDel(neigh); err != nil {
			t.Fatal(err)
		}
		defer func() {
			neigh.State, neigh.HardwareAddr = netlink.NUD_PERMANENT, peerMAC
			if err := netlink.NeighSet(neigh); err != nil {
				t.Fatal(err)
			}
		}()
		// No neighbour: the stack resolves it.
		p := s.legs(h)[0].p
		h.want(h.through("poda", "uplink", p), p.to(s.path.backend))
		h.wantCounted(layout.ReasonFib, 1)
	})
}

// The device by which a flow left is gone.
func TestFastPathWithoutDevice(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		s := fastStories(h)[2]
		s.start(h)
		h.fastPath()
		h.outIfindex(s.path.source, s.path.backend, 1<<20)
		p := s.legs(h)[0].p
		h.want(h.through("poda", "podb", p), p.to(s.path.backend))
		// The stack's way is noted again.
		if v, _ := h.run("poda", "ingress", h.build(p)); v != redirect {
			t.Errorf("afterwards: %s", verdictName(v))
		}
	})
}
