// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"bytes"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/millrace-project/millrace/bpf/layout"
)

func TestPlainFlows(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		a := at(h.podA, 40000)
		for _, other := range []struct {
			name     string
			end      packet
			out      string
			recorded bool
		}{
			{"pod of this node", h.opening(a, at(h.podB, 80)), "podb", true},
			{"pod of another", h.opening(a, at(h.podC, 80)), "uplink", true},
			{"another node", h.opening(a, at(h.node2, 80)), "uplink", true},
			{"outside", h.opening(a, at(h.outside, 80)), "uplink", false},
		} {
			h.untouched("poda", "ingress", other.end)
			h.untouched(other.out, "egress", other.end)
			f, ok := h.entry(other.end.src, other.end.dst)
			if ok != other.recorded {
				t.Errorf("%s: recorded %v, want %v", other.name, ok, other.recorded)
			}
			if ok && f.flags&^layout.CtOrigIsLo != layout.CtCluster {
				t.Errorf("%s: flags %s", other.name, f.flags)
			}
		}
		in := h.opening(at(h.outside, 40000), at(h.podA, 80))
		h.untouched("uplink", "ingress", in)
		h.untouched("poda", "egress", in)
		if _, ok := h.entry(in.src, in.dst); ok {
			t.Error("a flow from outside has a record")
		}
	})
}

// Packets in the middle of a TCP connection that nobody knows, even to a
// service, are the stack's.
func TestMidFlowWithoutRecordPasses(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		p := h.podToPod()
		for _, flags := range []uint8{ack, psh | ack, fin | ack, rst, syn | ack} {
			h.untouched("poda", "ingress", segment(p.client, p.frontend, flags, 5, 6))
			h.untouched("podb", "egress", segment(p.client, p.frontend, flags, 5, 6))
		}
		if _, ok := h.entry(p.client, p.frontend); ok {
			t.Error("it made a flow")
		}
	})
}

func TestDisabledPasses(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		p := h.podToPod()
		h.established("poda", "podb", p)
		h.configure(func(c *layout.Config) { c.Flags = 0 })
		for _, dev := range []string{"poda", "podb", "uplink"} {
			for _, hook := range []string{"ingress", "egress"} {
				h.untouched(dev, hook, h.data(p.client, p.frontend, "x"))
				h.untouched(dev, hook, h.data(p.backend, p.client, "x"))
				h.untouched(dev, hook, h.opening(at(h.podA, 41000), p.frontend))
			}
		}
	})
}

func TestLoopbackFrontendsAreForSockets(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.service(at(h.vip, 80), layout.FrontendNodePort|layout.FrontendHostOnly, local(at(h.podB, 8080)))
		h.untouched("poda", "ingress", h.opening(at(h.podA, 40000), at(h.vip, 80)))
	})
}

// Everything that is neither TCP nor UDP nor an ICMP error, at every hook, byte for byte.
func TestOthersPass(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		h.service(at(h.vip, 80), layout.FrontendClusterIP, local(at(h.podB, 8080)))
		frames := map[string][]byte{}
		mac := make([]byte, 12)
		frames["ARP"] = append(append(mac, 8, 6), make([]byte, 46)...)
		frames["LLDP"] = append(append(mac, 0x88, 0xcc), make([]byte, 46)...)
		ping := gopacket.NewSerializeBuffer()
		opts := gopacket.SerializeOptions{ComputeChecksums: true}
		icmp := gopacket.SerializableLayer(&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 1, Seq: 1})
		solicit := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, h.vip.AsSlice()...)
		proto := layers.IPProtocolICMPv4
		if h.n == 6 {
			proto = layers.IPProtocolICMPv6
			v6 := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
			v6.SetNetworkLayerForChecksum(h.network(h.data(at(h.podA, 0), at(h.vip, 0), "")))
			icmp = v6
		}
		if err := gopacket.SerializeLayers(ping, opts, icmp, gopacket.Payload("0123")); err != nil {
			t.Fatal(err)
		}
		ends := packet{src: at(h.podA, 0), dst: at(h.vip, 0), ttl: 64}
		frames["echo"] = append(mac, h.ip(ends, proto, ping.Bytes())...)
		if h.n == 6 {
			frames["neighbour solicitation"] = append(mac, h.ip(ends, proto, solicit)...)
		}
		frames["SCTP"] = append(mac, h.ip(ends, 132, make([]byte, 40))...)
		frames["GRE"] = append(mac, h.ip(ends, 47, make([]byte, 40))...)
		frames["ESP"] = append(mac, h.ip(ends, 50, make([]byte, 40))...)
		frames["TCP cut short"] = append(mac, h.ip(ends, 6, make([]byte, 12))...)
		frames["UDP cut short"] = append(mac, h.ip(ends, 17, make([]byte, 4))...)
		frames["ICMP cut short"] = append(mac, h.ip(ends, proto, []byte{3, 3, 0, 0})...)
		if h.n == 6 {
			routing := h.build(h.opening(at(h.podA, 40000), at(h.vip, 80)))
			tcp := append([]byte{6, 0, 4, 1, 0, 0, 0, 0}, routing[54:]...) // one segment left
			frames["routing header"] = append(mac, h.ip(ends, 43, tcp)...)
			frames["extension headers without end"] = append(mac, h.ip(ends, 0, bytes.Repeat([]byte{0, 0, 1, 4, 0, 0, 0, 0}, 20))...)
			frames["extension header cut short"] = append(mac, h.ip(ends, 0, []byte{6, 200, 1, 4, 0, 0, 0, 0})...)
		} else {
			bad := append([]byte(nil), h.build(h.opening(at(h.podA, 40000), at(h.vip, 80)))...)
			bad[14] = 0x44 // header shorter than the shortest
			frames["impossible header length"] = bad
		}
		for name, frame := range frames {
			for _, dev := range []string{"poda", "uplink"} {
				for _, hook := range []string{"ingress", "egress"} {
					t.Run(name+" "+dev+" "+hook, func(t *testing.T) {
						h := *h
						h.t = t
						h.untouchedBytes(dev, hook, frame)
					})
				}
			}
		}
	})
}

// A frame for another machine, as an uplink in promiscuous mode gets it. (What
// a pod sends is for this node even so: see TestBridgedPod.)
func TestFramesForOthersPass(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.service(at(h.vip, 80), layout.FrontendClusterIP)
		frame := h.build(h.opening(at(h.podA, 40000), at(h.vip, 80)))
		copy(frame, []byte{2, 9, 9, 9, 9, 9})
		verdict, out := h.runRaw("uplink", "ingress", frame)
		if verdict != pass || !bytes.Equal(out, frame) {
			t.Errorf("verdict %s", verdictName(verdict))
		}
	})
}
