// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// generations are the family's conntrack maps.
func (h *host) generations() (established, embryonic *bpf.Generations) {
	m := node.d.Family(h.n)
	return m.Established, m.Embryonic
}

// grow exchanges a map for a larger one. A story that ends with entries in the
// draining one moves them, so that the next begins with one map.
func (h *host) grow(g *bpf.Generations) {
	h.t.Helper()
	if err := g.Grow(g.Current().MaxEntries() + 256); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { h.drain(g) })
}

// drain moves all entries, some at a time, and returns how many.
func (h *host) drain(g *bpf.Generations) int { return h.drainBy(g, 3) }

func (h *host) drainBy(g *bpf.Generations, limit int) int {
	h.t.Helper()
	mover := node.d.NewMover(g)
	total := 0
	for steps := 0; g.Draining() != nil; steps++ {
		moved, err := mover.Step(limit)
		if err != nil {
			h.t.Fatal(err)
		}
		if total += moved.Moved; steps > 100000 {
			h.t.Fatalf("%s does not get empty: %+v", g.Name(), moved)
		}
	}
	return total
}

// TestGrowthUnderEstablishedFlows lets maps be exchanged at each point of a
// flow's life: it goes on, wherever its record stands.
func TestGrowthUnderEstablishedFlows(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		established, _ := h.generations()
		p := h.podToPod()
		h.established("poda", "podb", p)
		before := h.record(p.source, p.backend)
		h.grow(established)
		if f := h.record(p.source, p.backend); !f.draining || f.nonce != before.nonce {
			t.Fatalf("the record is not in the draining map: %+v", f)
		}
		talk := func() {
			t.Helper()
			p.request(h.data(p.client, p.frontend, "GET"))
			p.reply(h.data(p.backend, p.client, "answer"))
		}
		talk()
		if n := h.drain(established); n < 2 {
			t.Errorf("%d entries were moved, want the record and its alias", n)
		}
		if f := h.record(p.source, p.backend); f.draining || !f.established || f.nonce != before.nonce || f.expires < before.expires {
			t.Errorf("after the move: %+v, before %+v", f, before)
		}
		talk()
		h.grow(established)
		h.drain(established)
		talk()
		if h.proto == layout.ProtoTCP {
			p.request(segment(p.client, p.frontend, fin|ack, 2000, 6000))
			h.grow(established)
			p.reply(segment(p.frontend, p.client, fin|ack, 6000, 2001))
			h.drain(established)
			if f := h.record(p.source, p.backend); f.state != layout.CtClosed {
				t.Errorf("after FINs before and after the exchange: %s", f.state)
			}
		}
	})
}

// TestGrowthUnderHandshakes exchanges both maps between each two packets of a
// handshake, with entries left in the draining maps or moved.
func TestGrowthUnderHandshakes(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		established, embryonic := h.generations()
		p := h.podToPod()
		packets := []func(){
			func() { p.request(segment(p.client, p.frontend, syn, 1000, 0)) },
			func() { p.reply(segment(p.frontend, p.client, syn|ack, 5000, 1001)) },
			func() { p.request(segment(p.client, p.frontend, ack, 1001, 5001)) },
		}
		if h.proto == layout.ProtoUDP {
			packets = []func(){
				func() { p.request(h.data(p.client, p.frontend, "question")) },
				func() { p.reply(h.data(p.frontend, p.client, "answer")) },
				func() { p.request(h.data(p.client, p.frontend, "question")) },
			}
		}
		for before := 1; before < len(packets); before++ {
			for _, move := range []bool{false, true} {
				p.client = at(h.podA, p.client.Port()+1)
				p.source = p.client
				for i, send := range packets {
					if i == before {
						h.grow(established)
						h.grow(embryonic)
						if move {
							h.drain(established)
							h.drain(embryonic)
						}
					}
					send()
				}
				if f := h.record(p.source, p.backend); !f.established || f.draining {
					t.Errorf("exchange before packet %d, moved %v: %+v", before, move, f)
				}
				h.drain(established)
				h.drain(embryonic)
				if key, err := embryonic.Current().NextKeyBytes(nil); err != nil || key != nil {
					t.Errorf("left among the embryonic: % x %v", key, err)
				}
				p.request(h.data(p.client, p.frontend, "GET"))
				p.reply(h.data(p.backend, p.client, "answer"))
			}
		}
	})
}

// TestGrowthKeepsPortsApart leaves a flow in the draining map that has the only
// source port: no other flow gets it, before the move and after.
func TestGrowthKeepsPortsApart(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		established, embryonic := h.generations()
		h.configure(func(c *layout.Config) { c.SnatPortFirst, c.SnatPortLast = snatFirst, snatFirst })
		frontend, backend := at(h.node, 30080), at(h.podC, 8080)
		h.service(frontend, layout.FrontendNodePort, remote(backend))
		p := &path{h: h, clientDev: "uplink", backendDev: "uplink", client: at(h.outside, 40000), frontend: frontend,
			backend: backend, source: at(h.node, 0)}
		second := h.opening(at(h.outside, 40001), frontend)
		refused := func(when string) {
			t.Helper()
			before := h.counted(layout.ReasonNoSnatPort)
			if verdict, _ := h.run("uplink", "ingress", h.build(second)); verdict != drop {
				t.Errorf("%s: the second flow got %s, want a drop", when, verdictName(verdict))
			}
			h.wantCounted(layout.ReasonNoSnatPort, before+1)
		}
		p.request(h.opening(p.client, frontend))
		h.grow(embryonic)
		refused("first flow in the draining embryonic map")
		h.drain(embryonic)
		refused("first flow moved among the embryonic")
		if h.proto == layout.ProtoTCP {
			p.reply(segment(p.frontend, p.client, syn|ack, 5000, 1001))
			p.request(segment(p.client, p.frontend, ack, 1001, 5001))
		} else {
			p.reply(h.data(p.frontend, p.client, "answer"))
			p.request(h.data(p.client, p.frontend, "question"))
		}
		h.grow(established)
		refused("first flow in the draining established map")
		p.request(h.data(p.client, frontend, "GET"))
		h.drain(established)
		refused("first flow moved among the established")
		if h.proto == layout.ProtoTCP {
			// Over, in the draining map: its port goes to the next that may have it.
			h.grow(established)
			p.request(segment(p.client, p.frontend, fin|ack, 2000, 6000))
			p.reply(segment(p.frontend, p.client, fin|ack, 6000, 2001))
			h.change(p.source, p.backend, func(expires *uint64, _ *uint32) { *expires -= 5e9 })
			second.seq = 1 << 20
			if verdict, _ := h.run("uplink", "ingress", h.build(second)); verdict != pass {
				t.Errorf("the port of a flow that is over: %s", verdictName(verdict))
			}
		}
	})
}

// TestGrowthForgetsClosedFlows opens a connection anew while the closed one of
// the same ports stands in the draining map.
func TestGrowthForgetsClosedFlows(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		established, _ := h.generations()
		p := h.podToPod()
		h.established("poda", "podb", p)
		old := h.record(p.source, p.backend)
		p.request(segment(p.client, p.frontend, fin|ack, 2000, 6000))
		p.reply(segment(p.frontend, p.client, fin|ack, 6000, 2001))
		h.grow(established)
		h.established("poda", "podb", p)
		f := h.record(p.source, p.backend)
		if f.nonce == old.nonce || f.draining {
			t.Fatalf("still the old flow: %+v", f)
		}
		h.drain(established)
		if after := h.record(p.source, p.backend); after.nonce != f.nonce || after.state != layout.CtEstablished {
			t.Errorf("the old flow came back: %+v", after)
		}
		p.request(h.data(p.client, p.frontend, "GET"))
	})
}

// TestGrowthKeepsTuplesUnique lets two processors open flows that want the same
// source ports while the embryonic map is exchanged over and over: at no time do
// two live records have one tuple.
func TestGrowthKeepsTuplesUnique(t *testing.T) {
	each(t, udp, func(t *testing.T, h *host) {
		_, embryonic := h.generations()
		h.configure(func(c *layout.Config) { c.SnatPortFirst, c.SnatPortLast = snatFirst, snatFirst+2047 })
		frontend, backend := at(h.node, 30080), at(h.podC, 8080)
		h.service(frontend, layout.FrontendNodePort, remote(backend))
		var stop atomic.Bool
		var wait sync.WaitGroup
		for worker := range uint16(2) {
			frames := make([][]byte, 4096)
			for i := range frames {
				frames[i] = h.build(h.opening(at(h.outside, 1024+2*uint16(i)+worker), frontend))
				copy(frames[i], node.devs["uplink"].HardwareAddr)
			}
			wait.Go(func() {
				for i := 0; !stop.Load(); i++ {
					opts := ebpf.RunOptions{Data: frames[i%len(frames)], Context: skbuff{Ifindex: uint32(node.devs["uplink"].Index)}}
					if _, err := node.d.Program("tc_uplink_ingress").Run(&opts); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for range 5 {
			if err := embryonic.Grow(embryonic.Current().MaxEntries() + 256); err != nil {
				t.Error(err)
				break
			}
			if h.n == 4 {
				wantUnique[layout.V4](h, embryonic)
			} else {
				wantUnique[layout.V6](h, embryonic)
			}
			h.drainBy(embryonic, 4096)
			// Ports for the next round.
			var key []byte
			for range 4096 {
				if embryonic.Current().NextKey(nil, &key) == nil {
					embryonic.Current().Delete(key) //nolint:errcheck // another one took its place
				}
			}
		}
		stop.Store(true)
		wait.Wait()
	})
}

// wantUnique looks for live records of two flows under one tuple.
func wantUnique[A layout.IP](h *host, g *bpf.Generations) {
	h.t.Helper()
	current, draining := g.Maps()
	records := 0
	err := bpf.Each(draining, func(k layout.CtKey[A], e layout.CtEntry[A]) bool {
		var other layout.CtEntry[A]
		if err := current.Lookup(&k, &other); err == nil && other.Nonce != e.Nonce && e.Kind == layout.CtRecord {
			// It may have gone since, and then the other one is the only one.
			if draining.Lookup(&k, &e) == nil && current.Lookup(&k, &other) == nil && other.Nonce != e.Nonce {
				h.t.Errorf("two records under %s: %s and %s", k, &e, &other)
			}
		}
		records++
		return true
	})
	if err != nil {
		h.t.Error(err)
	}
	if records == 0 {
		h.t.Error("nothing was opened while the map was exchanged")
	}
}

// TestFullEstablishedMap fills the established map. While it can grow, flows
// without room go on among the embryonic ones; at its limit new ones are refused
// and counted, those that are there go on, and plain ones need no record.
func TestFullEstablishedMap(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		established, _ := h.generations()
		p := h.podToPod()
		h.established("poda", "podb", p)
		limit := func(v uint32) {
			t.Helper()
			if err := node.d.SetConntrackLimit(h.n, v != 0); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() { limit(0) })
		if h.n == 4 {
			fillUp[layout.V4](h, established.Current())
		} else {
			fillUp[layout.V6](h, established.Current())
		}
		// It waits among the embryonic ones, and works.
		late := *p
		late.client = at(h.podA, 40001)
		late.source = late.client
		failures := h.pressure()
		open := func(p *path) {
			if h.proto == layout.ProtoUDP {
				p.request(h.data(p.client, p.frontend, "question"))
				p.reply(h.data(p.frontend, p.client, "answer"))
				p.request(h.data(p.client, p.frontend, "question"))
				return
			}
			p.request(segment(p.client, p.frontend, syn, 1000, 0))
			p.reply(segment(p.frontend, p.client, syn|ack, 5000, 1001))
			p.request(segment(p.client, p.frontend, ack, 1001, 5001))
		}
		open(&late)
		late.request(h.data(late.client, late.frontend, "GET"))
		late.reply(h.data(late.backend, late.client, "answer"))
		f := h.record(late.source, late.backend)
		if f.established || h.pressure() <= failures {
			t.Fatalf("it is established although there is no room, or nobody counted: %+v", f)
		}
		timeout := uint64(h.config.TCPEstablishedTimeout)
		if h.proto == layout.ProtoUDP {
			timeout = uint64(h.config.UDPStreamTimeout)
		}
		if left := f.expires - bpf.CoarseNow(); left < timeout*9/10*1e9 {
			t.Errorf("it expires in %d s, an established one in %d s", left/1e9, timeout)
		}
		// At the limit.
		limit(1)
		third := *p
		third.client = at(h.podA, 40002)
		before := h.counted(layout.ReasonCtFull)
		if verdict, _ := h.run("poda", "ingress", h.build(h.opening(third.client, third.frontend))); verdict != drop {
			t.Errorf("a new flow at the limit: %s, want a drop", verdictName(verdict))
		}
		h.wantCounted(layout.ReasonCtFull, before+1)
		h.untouched("poda", "ingress", h.opening(third.client, p.backend)) // to no service
		for _, old := range []*path{p, &late} {
			old.request(h.data(old.client, old.frontend, "GET"))
			old.reply(h.data(old.backend, old.client, "answer"))
		}
		// Room again: the one that waited moves, and new ones are let in.
		limit(0)
		h.grow(established)
		if h.proto == layout.ProtoTCP {
			late.request(segment(late.client, late.frontend, ack, 1001, 5001+1<<15))
		} else {
			late.request(h.data(late.client, late.frontend, "GET"))
		}
		if f := h.record(late.source, late.backend); !f.established || f.draining {
			t.Errorf("with room again: %+v", f)
		}
		limit(1)
		third.source = third.client
		open(&third)
		h.clear(established.Current())
		if d := established.Draining(); d != nil {
			h.clear(d)
		}
	})
}

// fillUp adds live entries of nobody until there is no room.
func fillUp[A layout.IP](h *host, m *ebpf.Map) {
	h.t.Helper()
	e := layout.CtEntry[A]{Kind: layout.CtRecord, State: layout.CtEstablished, Expires: ^uint64(0)}
	for i := range uint32(m.MaxEntries() + 1) {
		e.Main = layout.CtKey[A]{LoPort: layout.Port(uint16(i)), HiPort: layout.Port(uint16(i >> 16)), Proto: 200}
		err := m.Update(&e.Main, &e, ebpf.UpdateNoExist)
		if errors.Is(err, ebpf.ErrKeyExist) {
			continue
		}
		if err != nil {
			return
		}
	}
	h.t.Fatal("the map does not get full")
}

// pressure is how often the family's established map had no room.
func (h *host) pressure() uint64 {
	h.t.Helper()
	p, err := node.d.Pressure(h.n)
	if err != nil {
		h.t.Fatal(err)
	}
	return p.Failures
}
