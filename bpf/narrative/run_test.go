// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

// Verdicts of programs, as the kernel numbers them.
const (
	pass     = 0xffffffff
	drop     = 2
	redirect = 7
)

func verdictName(v uint32) string {
	switch v {
	case pass:
		return "pass"
	case drop:
		return "drop"
	case redirect:
		return "redirect"
	}
	return fmt.Sprint(v)
}

// skbuff is the beginning of struct __sk_buff.
type skbuff struct {
	_       [10]uint32
	Ifindex uint32
	_       [33]uint32
	GSOSize uint32
	_       uint32
}

// run gives a packet to the program of a hook ("ingress" is into the node) of a
// device and returns its verdict and the packet after it.
func (h *host) run(dev, hook string, packet []byte) (uint32, []byte) {
	h.t.Helper()
	i := node.devs[dev]
	in := append([]byte(nil), packet...)
	if hook == "ingress" {
		copy(in, i.HardwareAddr)
		copy(in[6:], peerMAC)
	} else {
		copy(in, peerMAC)
		copy(in[6:], i.HardwareAddr)
	}
	return h.runRaw(dev, hook, in)
}

// runRaw does so with the frame's own link addresses.
func (h *host) runRaw(dev, hook string, in []byte) (uint32, []byte) {
	h.t.Helper()
	return h.runGSO(dev, hook, in, 0)
}

// checksumComplete (BPF_F_TEST_SKB_CHECKSUM_COMPLETE) runs a program on a packet
// with the sum of the whole that a device computed, and fails with EBADMSG if
// the program left it wrong.
const checksumComplete = 1 << 2

// runGSO does so with a packet that is to be cut into segments of a size.
func (h *host) runGSO(dev, hook string, in []byte, size uint32) (uint32, []byte) {
	h.t.Helper()
	role := "pod"
	if dev == "uplink" {
		role = "uplink"
	}
	prog := node.d.Program("tc_" + role + "_" + hook)
	opts := ebpf.RunOptions{Flags: h.runFlags, Data: in, DataOut: make([]byte, len(in)+256), Context: skbuff{Ifindex: uint32(node.devs[dev].Index), GSOSize: size}}
	verdict, err := prog.Run(&opts)
	if errors.Is(err, unix.EINVAL) && opts.Flags != 0 { // a kernel that does not know the flag
		opts.Flags = 0
		verdict, err = prog.Run(&opts)
	}
	if errors.Is(err, unix.EBADMSG) {
		h.t.Fatalf("%s %s: the sum of the whole packet that a device left with it is wrong now", dev, hook)
	}
	if err != nil {
		h.t.Fatalf("run program of %s %s: %v", dev, hook, err)
	}
	return verdict, opts.DataOut
}

// in lets a packet enter by a device; it must go on to the stack.
func (h *host) in(dev string, p packet) packet {
	h.t.Helper()
	return h.hook(dev, "ingress", p)
}

// out lets a packet leave the stack by a device; it must go on to the wire.
func (h *host) out(dev string, p packet) packet {
	h.t.Helper()
	return h.hook(dev, "egress", p)
}

func (h *host) hook(dev, hook string, p packet) packet {
	h.t.Helper()
	verdict, data := h.run(dev, hook, h.build(p))
	if verdict != pass {
		h.t.Fatalf("%s at %s %s: %s, want pass", p, dev, hook, verdictName(verdict))
	}
	return h.parse(data)
}

// through lets a packet enter by one device, pass the stack, and leave by another.
func (h *host) through(in, out string, p packet) packet {
	h.t.Helper()
	p = h.in(in, p)
	p.ttl--
	return h.out(out, p)
}

// counted is how often a reason was counted, on all devices.
func (h *host) counted(r layout.Reason) uint64 {
	h.t.Helper()
	all, err := node.d.ReadCounters()
	if err != nil {
		h.t.Fatal(err)
	}
	var n uint64
	for k, c := range all {
		if k.Reason == r {
			n += c.Packets
		}
	}
	return n
}

func (h *host) wantCounted(r layout.Reason, n uint64) {
	h.t.Helper()
	if got := h.counted(r); got != n {
		h.t.Errorf("reason %s was counted %d times, want %d", r, got, n)
	}
}
