// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"net/netip"
	"testing"

	"github.com/millrace-project/millrace/bpf/layout"
)

// errorAbout is an ICMP error from a sender to the source of a packet, quoting
// n bytes behind its IP header (0: all of it).
func (h *host) errorAbout(from netip.Addr, p packet, typ, code uint8, rest uint32, n int) packet {
	h.t.Helper()
	inside := h.build(p)[14:]
	if n > 0 {
		inside = inside[:h.ipLen+n]
	}
	return packet{src: at(from, 0), dst: at(p.src.Addr(), 0), ttl: 60, icmpType: typ, icmpCode: code, icmpRest: rest, inside: inside, about: &p}
}

// wantError compares an error with one that is expected.
func (h *host) wantError(got packet, from, to netip.Addr, sent packet, insideSrc, insideDst netip.AddrPort) {
	h.t.Helper()
	if got.icmpType != sent.icmpType || got.icmpCode != sent.icmpCode || got.icmpRest != sent.icmpRest {
		h.t.Errorf("got %s, sent %s", got, sent)
	}
	if got.src.Addr() != from || got.dst.Addr() != to {
		h.t.Errorf("goes from %s to %s, want %s to %s", got.src.Addr(), got.dst.Addr(), from, to)
	}
	if got.about == nil || got.about.src != insideSrc || got.about.dst != insideDst {
		h.t.Errorf("is about %v, want %s > %s", got.about, insideSrc, insideDst)
	}
	if len(got.inside) != len(sent.inside) {
		h.t.Errorf("quotes %d bytes, sent %d", len(got.inside), len(sent.inside))
	}
}

// Quotes: the least that a sender must give, and the whole, where the checksums
// inside can be verified.
var quotes = []int{8, 0}

// tooBig is "fragmentation needed" or "packet too big" with an MTU.
func (h *host) tooBig() (typ, code uint8) { return h.icmp(3, 4, 2, 0) }

func TestErrorFromTheBackend(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		c, vip, b := at(h.podA, 40000), at(h.vip, 80), at(h.podB, 8080)
		h.service(vip, layout.FrontendClusterIP, local(b))
		seen := h.through("poda", "podb", h.opening(c, vip))
		typ, code := h.icmp(3, 3, 1, 4)
		for _, n := range quotes {
			sent := h.errorAbout(h.podB, seen, typ, code, 0, n)
			got := h.through("podb", "poda", sent)
			h.wantError(got, h.vip, h.podA, sent, c, vip)
		}
	})
}

// Path MTU: a router between the client's node and the backend; it is not made
// to look like the service.
func TestTooBigOnTheWayToTheBackend(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		c, vip, b := at(h.podA, 40000), at(h.vip, 80), at(h.podC, 8080)
		h.service(vip, layout.FrontendClusterIP, remote(b))
		h.through("poda", "uplink", h.opening(c, vip))
		big := h.through("poda", "uplink", h.data(c, vip, "pretend that this is long"))
		typ, code := h.tooBig()
		for _, n := range quotes {
			sent := h.errorAbout(h.router, big, typ, code, 1400, n)
			h.wantError(h.through("uplink", "poda", sent), h.router, h.podA, sent, c, vip)
			// The node's own, about the packet in its stack.
			sent = h.errorAbout(h.node, h.in("poda", h.data(c, vip, "long, too")), typ, code, 1400, n)
			h.wantError(h.out("poda", sent), h.node, h.podA, sent, c, vip)
		}
	})
}

// With source translation the error comes to the node, and goes on to the client.
func TestTooBigThroughSourceTranslation(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		c, np, b := at(h.outside, 40000), at(h.node, 30080), at(h.podC, 8080)
		h.service(np, layout.FrontendNodePort, remote(b))
		seen := h.through("uplink", "uplink", h.opening(c, np))
		typ, code := h.tooBig()
		for _, n := range quotes {
			sent := h.errorAbout(h.router, seen, typ, code, 1400, n)
			stack := h.in("uplink", sent)
			h.wantError(stack, h.router, h.outside, sent, c, b)
			stack.inside = stack.inside[:len(sent.inside)]
			h.wantError(h.out("uplink", stack), h.router, h.outside, sent, c, np)

			// The other way: the client's network does not take the answer.
			answer := h.through("uplink", "uplink", h.data(b, seen.src, "a long answer"))
			h.want(answer, h.data(np, c, "a long answer"))
			sent = h.errorAbout(h.router, answer, typ, code, 1300, n)
			stack = h.in("uplink", sent)
			h.wantError(stack, h.router, h.podC, sent, b, c)
			h.wantError(h.out("uplink", stack), h.router, h.podC, sent, b, seen.src)

			// And the client itself refuses it: its address stays hidden.
			utyp, ucode := h.icmp(3, 3, 1, 4)
			sent = h.errorAbout(h.outside, answer, utyp, ucode, 0, n)
			got := h.through("uplink", "uplink", sent)
			h.wantError(got, h.node, h.podC, sent, b, seen.src)
		}
	})
}

func TestErrorFromTheClientToBackendOnThisNode(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		c, np, b := at(h.outside, 40000), at(h.node, 30080), at(h.podB, 8080)
		h.service(np, layout.FrontendNodePort, local(b))
		h.through("uplink", "podb", h.opening(c, np))
		answer := h.through("podb", "uplink", h.data(b, c, "a long answer"))
		typ, code := h.tooBig()
		for _, n := range quotes {
			sent := h.errorAbout(h.router, answer, typ, code, 1300, n)
			h.wantError(h.through("uplink", "podb", sent), h.router, h.podB, sent, b, c)
		}
	})
}

func TestHairpinError(t *testing.T) {
	each(t, udp, func(t *testing.T, h *host) {
		c, vip, b := at(h.podA, 40000), at(h.vip, 80), at(h.podA, 8080)
		h.service(vip, layout.FrontendClusterIP, local(b))
		seen := h.answered("poda", h.opening(c, vip))
		typ, code := h.icmp(3, 3, 1, 4)
		for _, n := range quotes {
			sent := h.errorAbout(h.podA, seen, typ, code, 0, n)
			h.wantError(h.answered("poda", sent), h.vip, h.podA, sent, c, vip)
		}
	})
}

func TestErrorsOfOthersPass(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.service(at(h.vip, 80), layout.FrontendClusterIP, local(at(h.podB, 8080)))
		h.through("poda", "podb", h.opening(at(h.podA, 40000), at(h.vip, 80)))
		typ, code := h.tooBig()
		other := h.data(at(h.podA, 40001), at(h.outside, 443), "not the service's")
		for _, dev := range []string{"poda", "uplink"} {
			h.untouched(dev, "ingress", h.errorAbout(h.router, other, typ, code, 1400, 8))
			h.untouched(dev, "egress", h.errorAbout(h.router, other, typ, code, 1400, 0))
			// Cut off in the middle.
			h.untouchedBytes(dev, "ingress", h.build(h.errorAbout(h.router, other, typ, code, 0, 2)))
		}
	})
}
