// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"testing"

	"github.com/millrace-project/millrace/bpf/layout"
)

func pieces(p packet) (a, b packet) {
	a, b = p, p
	a.fragment, b.fragment = first, later
	return a, b
}

// reassemble puts a datagram of two fragments together and verifies it.
func (h *host) reassemble(a, b []byte) packet {
	h.t.Helper()
	if h.n == 4 {
		whole := append(append([]byte(nil), a...), b[34:]...)
		whole[14+6], whole[14+7] = 0, 0
		total := len(whole) - 14
		whole[14+2], whole[14+3] = byte(total>>8), byte(total)
		whole[14+10], whole[14+11] = 0, 0
		s := ^sum(0, whole[14:34])
		whole[14+10], whole[14+11] = byte(s>>8), byte(s)
		return h.parse(whole)
	}
	// Without the fragment headers.
	whole := append(append([]byte(nil), a[:54]...), a[62:]...)
	whole = append(whole, b[62:]...)
	whole[14+6] = a[54]
	total := len(whole) - 54
	whole[14+4], whole[14+5] = byte(total>>8), byte(total)
	return h.parse(whole)
}

func TestFragments(t *testing.T) {
	each(t, udp, func(t *testing.T, h *host) {
		h.runFlags = checksumComplete
		c, vip, b := at(h.podA, 40000), at(h.vip, 80), at(h.podC, 8080)
		h.service(vip, layout.FrontendClusterIP, remote(b))
		question := h.data(c, vip, "a datagram that is cut into two pieces")
		answer := h.data(b, c, "an answer that is cut into two pieces")

		send := func(in, out string, p packet) packet {
			t.Helper()
			var got [2][]byte
			one, two := pieces(p)
			for i, f := range []packet{one, two} {
				verdict, data := h.run(in, "ingress", h.build(f))
				if verdict != pass {
					t.Fatalf("%v: %s", f, verdictName(verdict))
				}
				if verdict, got[i] = h.run(out, "egress", data); verdict != pass {
					t.Fatalf("%v: %s", f, verdictName(verdict))
				}
				h.parse(got[i])
			}
			return h.reassemble(got[0], got[1])
		}
		h.want(send("poda", "uplink", question), question.to(b))
		h.want(send("uplink", "poda", answer), answer.from(vip))
		if f := h.record(c, b); f.state != layout.CtReplied {
			t.Errorf("state %s", f.state)
		}
	})
}

func TestFragmentsThroughSourceTranslation(t *testing.T) {
	each(t, udp, func(t *testing.T, h *host) {
		h.runFlags = checksumComplete
		c, np, b := at(h.outside, 40000), at(h.node, 30080), at(h.podC, 8080)
		h.service(np, layout.FrontendNodePort, remote(b))
		one, two := pieces(h.data(c, np, "a datagram that is cut into two pieces"))
		var got [2][]byte
		for i, f := range []packet{one, two} {
			_, data := h.run("uplink", "ingress", h.build(f))
			_, got[i] = h.run("uplink", "egress", data)
		}
		p := h.reassemble(got[0], got[1])
		if p.src.Addr() != h.node || p.dst != b {
			t.Errorf("the backend gets %s", p)
		}
	})
}

func TestLaterFragmentWithoutTheFirstPasses(t *testing.T) {
	each(t, udp, func(t *testing.T, h *host) {
		h.service(at(h.vip, 80), layout.FrontendClusterIP, local(at(h.podB, 8080)))
		_, two := pieces(h.data(at(h.podA, 40000), at(h.vip, 80), "a datagram that is cut into two pieces"))
		h.untouched("poda", "ingress", two)
	})
}

func TestOptionsAndExtensionHeaders(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		c, vip, b := at(h.podA, 40000), at(h.vip, 80), at(h.podB, 8080)
		h.service(vip, layout.FrontendClusterIP, local(b))
		p := h.opening(c, vip)
		p.options = true
		h.want(h.through("poda", "podb", p), p.to(b))
		answer := h.data(b, c, "answer")
		answer.options = true
		h.want(h.through("podb", "poda", answer), answer.from(vip))
	})
}

func TestZeroChecksumStaysZero(t *testing.T) {
	each(t, udp, func(t *testing.T, h *host) {
		c, vip, b := at(h.podA, 40000), at(h.vip, 80), at(h.podB, 8080)
		h.service(vip, layout.FrontendClusterIP, local(b))
		p := h.data(c, vip, "no checksum")
		p.zeroSum = true
		h.want(h.through("poda", "podb", p), p.to(b))
	})
}

// A checksum that comes out as zero is written as ffff.
func TestChecksumNeverBecomesZero(t *testing.T) {
	each(t, udp, func(t *testing.T, h *host) {
		c, vip, b := at(h.podA, 40000), at(h.vip, 80), at(h.podB, 8080)
		h.service(vip, layout.FrontendClusterIP, local(b))
		// Two bytes of payload make the sum of the translated packet all ones.
		want := h.build(h.data(c, b, "\x00\x00"))
		l4 := want[14+h.ipLen:]
		payload := string(l4[6:8])
		got := h.through("poda", "podb", h.data(c, vip, payload))
		h.want(got, h.data(c, b, payload))
		if got.zeroSum {
			t.Error("the checksum became zero, which means there is none")
		}
	})
}
