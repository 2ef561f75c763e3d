// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"net"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// established opens a flow and brings it to the established ones.
func (h *host) established(in, out string, p *path) {
	h.t.Helper()
	if h.proto == layout.ProtoUDP {
		p.request(h.data(p.client, p.frontend, "question"))
		p.reply(h.data(p.frontend, p.client, "answer"))
		p.request(h.data(p.client, p.frontend, "question"))
	} else {
		p.request(segment(p.client, p.frontend, syn, 1000, 0))
		p.reply(segment(p.frontend, p.client, syn|ack, 5000, 1001))
		p.request(segment(p.client, p.frontend, ack, 1001, 5001))
	}
	if f := h.record(p.source, p.backend); !f.established {
		h.t.Fatalf("the flow is not established: %+v", f)
	}
}

// podToPod is the common story: from one pod to another of this node.
func (h *host) podToPod() *path {
	h.t.Helper()
	c, vip, b := at(h.podA, 40000), at(h.vip, 80), at(h.podB, 8080)
	h.service(vip, layout.FrontendClusterIP, local(b))
	return &path{h: h, clientDev: "poda", backendDev: "podb", client: c, frontend: vip, backend: b, source: c}
}

func TestExpiredIsAMiss(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		p := h.podToPod()
		h.established("poda", "podb", p)
		before := h.record(p.source, p.backend)
		h.change(p.source, p.backend, func(expires *uint64, _ *uint32) { *expires = 1 })
		if h.proto == layout.ProtoTCP {
			// The middle of a connection that nobody knows.
			h.untouched("poda", "ingress", h.data(p.client, p.frontend, "late"))
		}
		h.untouched("podb", "ingress", segment(p.backend, p.client, psh|ack, 5001, 1001))
		// The same ports again: a new flow in the old one's place.
		other := at(h.podB, 9999)
		h.service(p.frontend, layout.FrontendClusterIP, local(other))
		h.want(h.in("poda", h.opening(p.client, p.frontend)), h.opening(p.client, other))
		h.service(p.frontend, layout.FrontendClusterIP, local(p.backend))
		h.change(p.source, other, func(expires *uint64, _ *uint32) { *expires = 1 })
		h.want(h.in("poda", h.opening(p.client, p.frontend)), h.opening(p.client, p.backend))
		if after := h.record(p.source, p.backend); after.nonce == before.nonce || after.established {
			t.Errorf("still the old record: %+v", after)
		}
	})
}

func TestPromotionTakesTheRightACK(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		p := h.podToPod()
		p.request(segment(p.client, p.frontend, syn, 1000, 0))
		wantNot := func(after string) {
			t.Helper()
			if f := h.record(p.source, p.backend); f.established {
				t.Errorf("established after %s", after)
			}
		}
		p.request(segment(p.client, p.frontend, ack, 1001, 5001))
		wantNot("an ACK of nothing")
		p.reply(segment(p.frontend, p.client, syn|ack, 5000, 1001))
		wantNot("the answer")
		p.request(segment(p.client, p.frontend, ack, 1001, 5000))
		wantNot("an ACK of less")
		p.request(segment(p.client, p.frontend, ack, 1001, 5001+1<<16))
		wantNot("an ACK of what was never sent")
		p.reply(segment(p.frontend, p.client, ack, 5001, 5001))
		wantNot("an ACK of the other end")
		p.request(segment(p.client, p.frontend, ack, 1001, 5001))
		f := h.record(p.source, p.backend)
		if !f.established || f.state != layout.CtEstablished {
			t.Errorf("not established after the right ACK: %+v", f)
		}
		// Nothing stays behind among the embryonic ones.
		for _, m := range []*ebpf.Map{node.d.V4.Embryonic.Current(), node.d.V6.Embryonic.Current()} {
			if key, err := m.NextKeyBytes(nil); err != nil || key != nil {
				t.Errorf("left in %s: % x %v", m, key, err)
			}
		}
	})
}

// The other end's data may come before the originator's first ACK.
func TestPromotionTakesALaterACK(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		p := h.podToPod()
		p.request(segment(p.client, p.frontend, syn, 1000, 0))
		p.reply(segment(p.frontend, p.client, syn|ack, 5000, 1001))
		p.request(segment(p.client, p.frontend, ack, 1001, 5001+1460))
		if f := h.record(p.source, p.backend); !f.established {
			t.Errorf("not established after an ACK of data: %+v", f)
		}
	})
}

// A pod behind a bridge sends to the bridge's link address.
func TestBridgedPod(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		p := h.podToPod()
		bridged := func(dev string, pkt packet) packet {
			t.Helper()
			frame := h.build(pkt)
			copy(frame, net.HardwareAddr{2, 0, 0, 0, 0, 0x42})
			copy(frame[6:], peerMAC)
			verdict, out := h.runRaw(dev, "ingress", frame)
			if verdict != pass { // also of an established flow: past the stack it would be lost
				t.Fatalf("%s at %s: %s, want pass", pkt, dev, verdictName(verdict))
			}
			return h.parse(out)
		}
		h.want(bridged("poda", h.opening(p.client, p.frontend)), h.opening(p.client, p.backend))
		h.established("poda", "podb", p)
		h.want(bridged("poda", h.data(p.client, p.frontend, "more")), h.data(p.client, p.backend, "more"))
	})
}

func TestAliasWithoutItsRecordIsAbsent(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		p := h.podToPod()
		h.established("poda", "podb", p)
		h.change(p.source, p.backend, func(_ *uint64, nonce *uint32) { *nonce++ })
		if h.proto == layout.ProtoTCP {
			h.untouched("poda", "ingress", h.data(p.client, p.frontend, "nobody knows"))
		}
		// A new flow takes the alias's place, and another tuple, for the record is a live stranger's now.
		other := at(h.podB, 9999)
		h.service(p.frontend, layout.FrontendClusterIP, local(other))
		h.want(h.in("poda", h.opening(p.client, p.frontend)), h.opening(p.client, other))
		h.want(h.in("poda", h.data(p.client, p.frontend, "more")), h.data(p.client, other, "more"))
	})
}

// A lost alias, as the LRU may take one, is made again for the same flow.
func TestLostAliasIsMadeAgain(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		p := h.podToPod()
		p.request(h.opening(p.client, p.frontend))
		before := h.record(p.source, p.backend)
		h.remove(p.client, p.frontend)
		p.request(h.opening(p.client, p.frontend))
		if after := h.record(p.source, p.backend); after.nonce != before.nonce {
			t.Error("the record was made again, not only the alias")
		}
	})
}

func TestStrayResetEndsNothing(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		p := h.podToPod()
		h.established("poda", "podb", p)
		p.reply(segment(p.frontend, p.client, rst, 5, 0))
		if f := h.record(p.source, p.backend); f.state != layout.CtClosed {
			t.Errorf("after RST: %s", f.state)
		}
		p.request(h.data(p.client, p.frontend, "still there"))
		if f := h.record(p.source, p.backend); f.state != layout.CtClosed {
			t.Errorf("the other end's packet undid the RST: %s", f.state)
		}
		p.reply(h.data(p.frontend, p.client, "so am I"))
		if f := h.record(p.source, p.backend); f.state != layout.CtEstablished {
			t.Errorf("after the sender of RST went on: %s", f.state)
		}
	})
}

func TestPortsAreUsedAgain(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		p := h.podToPod()
		p.conversation()
		other := at(h.podB, 9999)
		h.service(p.frontend, layout.FrontendClusterIP, local(other))
		h.want(h.in("poda", h.opening(p.client, p.frontend)), h.opening(p.client, other))
	})
}

func TestTimeouts(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		p := h.podToPod()
		p.request(h.opening(p.client, p.frontend))
		short := h.record(p.source, p.backend).expires
		h.remove(p.source, p.backend)
		h.established("poda", "podb", p)
		long := h.record(p.source, p.backend).expires
		want := uint64(3600 - 60)
		if h.proto == layout.ProtoUDP {
			want = 120 - 30
		}
		if got := (long - short) / 1e9; got < want-2 || got > want+2 {
			t.Errorf("an established flow lives %d s longer, want %d", got, want)
		}
		// A packet within the same second writes nothing; one later does.
		p.request(h.data(p.client, p.frontend, "x"))
		if now := h.record(p.source, p.backend).expires; now != long {
			t.Error("the expiry was written for less than a second")
		}
		h.change(p.source, p.backend, func(expires *uint64, _ *uint32) { *expires -= 5e9 })
		p.request(h.data(p.client, p.frontend, "x"))
		if now := h.record(p.source, p.backend).expires; now < long {
			t.Error("the expiry did not move")
		}
	})
}

// drained moves every flow to maps in the draining slots.
func (h *host) drained(f func()) {
	h.t.Helper()
	for _, m := range []*bpf.FamilyMaps{node.d.V4, node.d.V6} {
		for _, g := range []*bpf.Generations{m.Embryonic, m.Established} {
			info, err := g.Current().Info()
			if err != nil {
				h.t.Fatal(err)
			}
			draining, err := ebpf.NewMap(&ebpf.MapSpec{Type: info.Type, KeySize: info.KeySize, ValueSize: info.ValueSize,
				MaxEntries: info.MaxEntries, Flags: info.Flags})
			if err != nil {
				h.t.Fatal(err)
			}
			defer draining.Close()
			var key, value []byte
			for it := g.Current().Iterate(); it.Next(&key, &value); {
				if err := draining.Put(key, value); err != nil {
					h.t.Fatal(err)
				}
				if err := g.Current().Delete(key); err != nil {
					h.t.Fatal(err)
				}
			}
			if err := g.Outer.Put(uint32(1), draining); err != nil {
				h.t.Fatal(err)
			}
			outer := g.Outer
			defer func() {
				if err := outer.Delete(uint32(1)); err != nil {
					h.t.Fatal(err)
				}
			}()
		}
	}
	f()
}

func TestDrainingMapIsRead(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		p := h.podToPod()
		h.established("poda", "podb", p)
		np := at(h.node, 30080)
		h.service(np, layout.FrontendNodePort, remote(at(h.podC, 8080)))
		q := &path{h: h, clientDev: "uplink", backendDev: "uplink", client: at(h.outside, 40000), frontend: np,
			backend: at(h.podC, 8080), source: at(h.node, 0)}
		q.request(h.opening(q.client, np)) // embryonic
		h.drained(func() {
			h.service(p.frontend, layout.FrontendClusterIP)
			h.service(np, layout.FrontendNodePort)
			p.request(h.data(p.client, p.frontend, "more"))
			p.reply(h.data(p.frontend, p.client, "more"))
			if h.proto == layout.ProtoUDP {
				q.reply(h.data(np, q.client, "answer"))
				q.request(h.data(q.client, np, "question"))
			} else {
				q.reply(segment(np, q.client, syn|ack, 5000, 1001))
				q.request(segment(q.client, np, ack, 1001, 5001))
			}
			// What is established moves to the current map.
			if f := h.record(q.source, q.backend); !f.established {
				t.Errorf("%+v", f)
			}
			q.reply(h.data(np, q.client, "answer"))
		})
	})
}

func TestSourcePortsRunOut(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.configure(func(c *layout.Config) { c.SnatPortFirst, c.SnatPortLast = 50000, 50009 })
		np := at(h.node, 30080)
		h.service(np, layout.FrontendNodePort, remote(at(h.podC, 8080)))
		seen := make(map[uint16]bool)
		for i := range uint16(10) {
			got := h.through("uplink", "uplink", h.opening(at(h.outside, 40000+i), np))
			if seen[got.src.Port()] {
				t.Fatalf("source port %d is given twice", got.src.Port())
			}
			seen[got.src.Port()] = true
		}
		verdict, _ := h.run("uplink", "ingress", h.build(h.opening(at(h.outside, 41000), np)))
		if verdict != drop {
			t.Errorf("verdict %s", verdictName(verdict))
		}
		h.wantCounted(layout.ReasonNoSnatPort, 1)
		// One that expires is free again.
		h.change(at(h.node, 50004), at(h.podC, 8080), func(expires *uint64, _ *uint32) { *expires = 1 })
		if got := h.through("uplink", "uplink", h.opening(at(h.outside, 41000), np)); got.src.Port() != 50004 {
			t.Errorf("source port %d", got.src.Port())
		}
	})
}

// The port of a flow that is over serves another, of which a backend in
// TIME_WAIT takes the SYN.
func TestSourcePortOfAClosedFlow(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		h.configure(func(c *layout.Config) { c.SnatPortFirst, c.SnatPortLast = 50000, 50000 })
		np := at(h.node, 30080)
		h.service(np, layout.FrontendNodePort, remote(at(h.podC, 8080)))
		p := &path{h: h, clientDev: "uplink", backendDev: "uplink", client: at(h.outside, 40000), frontend: np,
			backend: at(h.podC, 8080), source: at(h.node, 50000)}
		next := at(h.outside, 41000)
		refused := func(why string, seq uint32) {
			t.Helper()
			if verdict, _ := h.run("uplink", "ingress", h.build(segment(next, np, syn, seq, 0))); verdict != drop {
				t.Errorf("%s: verdict %s", why, verdictName(verdict))
			}
		}
		h.established("uplink", "uplink", p)
		h.change(p.source, p.backend, func(expires *uint64, _ *uint32) { *expires -= 5e9 })
		refused("an open flow", 1<<20)
		h.change(p.source, p.backend, func(expires *uint64, _ *uint32) { *expires += 5e9 })
		p.request(segment(p.client, np, fin|ack, 1001, 5001))
		p.reply(segment(np, p.client, fin|ack, 5001, 1002))
		h.change(p.source, p.backend, func(expires *uint64, _ *uint32) { *expires -= 1e9 })
		refused("a sequence number of the past", 900)
		if got := h.through("uplink", "uplink", segment(next, np, syn, 1<<20, 0)); got.src != p.source {
			t.Errorf("source %s, want %s", got.src, p.source)
		}
		if f := h.record(p.source, p.backend); f.client != next {
			t.Errorf("record %+v", f)
		}
		// What is late of the old flow is nobody's.
		h.untouched("uplink", "ingress", segment(p.client, np, ack, 1002, 5002))
	})
}

func TestNoNodeAddress(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.configure(func(c *layout.Config) { c.NodeAddrV4, c.NodeAddrV6 = layout.V4{}, layout.V6{} })
		h.service(at(h.node, 30080), layout.FrontendNodePort, remote(at(h.podC, 8080)))
		verdict, _ := h.run("uplink", "ingress", h.build(h.opening(at(h.outside, 41000), at(h.node, 30080))))
		if verdict != drop {
			t.Errorf("verdict %s", verdictName(verdict))
		}
		h.wantCounted(layout.ReasonNoSnatPort, 1)
	})
}
