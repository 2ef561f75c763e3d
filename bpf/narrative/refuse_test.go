// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"strings"
	"testing"

	"github.com/millrace-project/millrace/bpf/layout"
)

// unreach and others are ICMP types and codes by family.
func (h *host) icmp(v4Type, v4Code, v6Type, v6Code uint8) (typ, code uint8) {
	if h.n == 4 {
		return v4Type, v4Code
	}
	return v6Type, v6Code
}

// answered runs a packet that must be answered where it entered.
func (h *host) answered(dev string, p packet) packet {
	h.t.Helper()
	verdict, out := h.run(dev, "ingress", h.build(p))
	if verdict != redirect {
		h.t.Fatalf("%s: %s, want redirect", p, verdictName(verdict))
	}
	if string(out[:6]) != string(peerMAC) || string(out[6:12]) != string(node.devs[dev].HardwareAddr) {
		h.t.Errorf("the answer goes from % x to % x", out[6:12], out[:6])
	}
	return h.parse(out)
}

func TestNoBackendTCP(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		h.service(at(h.vip, 80), layout.FrontendClusterIP)
		h.service(at(h.node, 30080), layout.FrontendNodePort)
		c, vip := at(h.podA, 40000), at(h.vip, 80)
		h.want(h.answered("poda", segment(c, vip, syn, 1000, 0)), segment(vip, c, rst|ack, 0, 1001))
		withData := segment(c, vip, syn, 1000, 0)
		withData.payload = "fast open"
		h.want(h.answered("poda", withData), segment(vip, c, rst|ack, 0, 1010))
		o, np := at(h.outside, 40001), at(h.node, 30080)
		h.want(h.answered("uplink", segment(o, np, syn, 7, 0)), segment(np, o, rst|ack, 0, 8))
		h.wantCounted(layout.ReasonNoBackend, 3)
		// What opens no connection goes to the stack.
		h.untouched("poda", "ingress", segment(c, vip, ack, 1001, 1))
	})
}

func TestNoBackendUDP(t *testing.T) {
	each(t, udp, func(t *testing.T, h *host) {
		h.service(at(h.vip, 53), layout.FrontendClusterIP)
		c, vip := at(h.podA, 40000), at(h.vip, 53)
		for _, payload := range []string{"", "x", "a question", strings.Repeat("long ", 200)} {
			for _, zeroSum := range []bool{false, true} {
				p := h.data(c, vip, payload)
				p.zeroSum = zeroSum
				got := h.answered("poda", p)
				typ, code := h.icmp(3, 3, 1, 4)
				if got.icmpType != typ || got.icmpCode != code || got.src.Addr() != h.vip || got.dst.Addr() != h.podA {
					t.Errorf("answer %s", got)
				}
				if got.about == nil || got.about.src != c || got.about.dst != vip || len(got.inside) != h.ipLen+8 {
					t.Errorf("the answer is about %v, %d bytes of it", got.about, len(got.inside))
				}
			}
		}
		h.wantCounted(layout.ReasonNoBackend, 8)
	})
}

// Headers that would have to be taken out of an answer: no answer, and no leak.
func TestNoBackendWithOptions(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		h.service(at(h.vip, 80), layout.FrontendClusterIP)
		p := h.opening(at(h.podA, 40000), at(h.vip, 80))
		p.options = true
		if verdict, _ := h.run("poda", "ingress", h.build(p)); verdict != drop {
			t.Errorf("verdict %s", verdictName(verdict))
		}
		h.wantCounted(layout.ReasonUnsupported, 1)
	})
}
