// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"testing"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// sent gives a packet of the host itself to the uplink's program; it must be
// sent on by another way.
func (h *host) sent(p packet) packet {
	h.t.Helper()
	verdict, out := h.run("uplink", "egress", h.build(p))
	if verdict != redirect {
		h.t.Fatalf("%s: %s, want redirect", p, verdictName(verdict))
	}
	return h.parse(out)
}

// The host's own packets to a service, which no socket program saw.
func TestHostToClusterIP(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		c, vip, b := at(h.node, 40000), at(h.vip, 80), at(h.podC, 8080)
		h.service(vip, layout.FrontendClusterIP, remote(b))
		h.want(h.sent(h.opening(c, vip)), h.opening(c, b))
		answer := h.data(b, c, "answer")
		if h.proto == layout.ProtoTCP {
			answer = segment(b, c, syn|ack, 5000, 1001)
		}
		h.want(h.in("uplink", answer), answer.from(vip))
		h.want(h.sent(h.data(c, vip, "more")), h.data(c, b, "more"))
		if f := h.record(c, b); !f.established || f.flags&layout.CtHostClient == 0 {
			t.Errorf("record %+v", f)
		}
		typ, code := h.tooBig()
		for _, n := range quotes {
			e := h.errorAbout(h.router, h.data(c, b, "more"), typ, code, 1400, n)
			h.wantError(h.in("uplink", e), h.router, h.node, e, c, vip)
		}
		// What the host does not reach by its uplink is not answered by it.
		h.untouched("uplink", "egress", h.data(at(h.node, 41000), at(h.outside, 80), "elsewhere"))
	})
}

func TestHostToNoBackend(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		c, vip := at(h.node, 40000), at(h.vip, 80)
		h.service(vip, layout.FrontendClusterIP)
		got := h.sent(h.opening(c, vip))
		if got.src.Addr() != h.vip || got.dst.Addr() != h.node {
			t.Errorf("answer %s", got)
		}
		h.wantCounted(layout.ReasonNoBackend, 1)
	})
}

func TestTrafficOfTheHost(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		_, b, beyond := h.wires(1500)
		uplink := node.devs["uplink"].Index // of the route to the services' addresses
		if _, err := node.d.AttachDevice(uplink, bpf.Uplink); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := node.d.DetachDevice(uplink); err != nil {
				t.Error(err)
			}
		}()
		b.serve(h.proto, at(h.podB, 8080))
		beyond.serve(h.proto, at(h.podC, 8080))
		h.service(at(h.vip, 80), layout.FrontendClusterIP, local(at(h.podB, 8080)))
		h.service(at(h.vip2, 80), layout.FrontendClusterIP, remote(at(h.podC, 8080)))
		h.service(at(h.vip, 81), layout.FrontendClusterIP)
		self := thisMachine(t)
		size := 2 << 20
		if h.proto == layout.ProtoUDP {
			size = 1000
		}
		for _, fast := range []bool{false, true} {
			if fast {
				h.fastPath()
			}
			if err := self.exchange(h.proto, h.node, at(h.vip, 80), size); err != nil {
				t.Errorf("to a pod here: %v", err)
			}
			if err := self.exchange(h.proto, h.node, at(h.vip2, 80), size); err != nil {
				t.Errorf("to a pod there: %v", err)
			}
		}
		self.refused(h.proto, h.node, at(h.vip, 81))
	})
}
