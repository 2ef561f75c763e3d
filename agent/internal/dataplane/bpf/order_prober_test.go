// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	mbpf "github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// prober gives packets of a pod's clients to the program at the pod's device.
type prober struct {
	t       *testing.T
	kernel  *mbpf.Dataplane
	ifindex uint32
	// client makes every packet the first of a flow of its own: one that is
	// known goes on to where it went.
	client uint32
	// keeps are the backends that it keeps, by service port and family.
	keeps map[kept]string

	packets, passed, refused, grown int
}

func newProber(t *testing.T, kernel *mbpf.Dataplane) *prober {
	t.Helper()
	link, err := netlink.LinkByName("pod1")
	if err != nil {
		t.Fatal(err)
	}
	return &prober{t: t, kernel: kernel, ifindex: uint32(link.Attrs().Index), keeps: map[kept]string{}}
}

type kept struct {
	service uint32
	family  tables.Family
}

// skbuff is the beginning of struct __sk_buff.
type skbuff struct {
	_       [10]uint32
	Ifindex uint32
	_       [34]uint32
}

// pass is TC_ACT_UNSPEC: the packet goes on to the stack.
const pass = 0xffffffff

// frame is the first packet of a flow from a client of the pod.
func (p *prober) frame(to netip.AddrPort, proto uint8) []byte {
	p.client++
	port := uint16(1024 + p.client%60000)
	from := netip.AddrFrom4([4]byte{10, 1, 0, 200})
	if to.Addr().Is6() {
		from = netip.MustParseAddr("fd01::200")
	}
	var transport []byte
	if proto == 6 {
		transport = make([]byte, 20)
		binary.BigEndian.PutUint32(transport[4:], p.client)
		transport[12], transport[13] = 5<<4, 2 // SYN
	} else {
		transport = make([]byte, 16)
		binary.BigEndian.PutUint16(transport[4:], 16)
		transport[6] = 1 // a checksum: none would not be kept up
	}
	binary.BigEndian.PutUint16(transport, port)
	binary.BigEndian.PutUint16(transport[2:], to.Port())
	frame := make([]byte, 14, 14+40+20)
	if to.Addr().Is4() {
		frame[12], frame[13] = 8, 0
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(transport)))
		copy(ip[12:], from.AsSlice())
		copy(ip[16:], to.Addr().AsSlice())
		frame = append(frame, ip...)
	} else {
		frame[12], frame[13] = 0x86, 0xdd
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(transport)))
		copy(ip[8:], from.AsSlice())
		copy(ip[24:], to.Addr().AsSlice())
		frame = append(frame, ip...)
	}
	return append(frame, transport...)
}

// run gives a packet to the program and returns where it is to go; not valid if
// it is answered or dropped.
func (p *prober) run(to netip.AddrPort, proto uint8) netip.AddrPort {
	p.t.Helper()
	in := p.frame(to, proto)
	options := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: skbuff{Ifindex: p.ifindex}}
	verdict, err := p.kernel.Program("tc_pod_ingress").Run(&options)
	if err != nil {
		p.t.Fatalf("run the program of pods: %v", err)
	}
	p.packets++
	if verdict != pass {
		return netip.AddrPort{}
	}
	out := options.DataOut[14:]
	at, length := 16, 4
	transport := out[20:]
	if to.Addr().Is6() {
		at, length = 24, 16
		transport = out[40:]
	}
	addr, _ := netip.AddrFromSlice(out[at : at+length])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(transport[2:]))
}

// ask checks that a packet to a frontend goes to one of its backends, or is
// refused if there is none.
func (p *prober) ask(e tables.FrontendEntry, backends []string) {
	p.t.Helper()
	to := e.Key.AddrPort()
	got := p.run(to, e.Key.Proto)
	switch {
	case layout.FrontendFlags(e.Value.Flags)&layout.FrontendHostOnly != 0:
		if got != to {
			p.t.Fatalf("a packet to %s, which is for sockets of the host, goes to %s", e.Key, got)
		}
	case len(backends) == 0:
		p.refused++
		if got.IsValid() {
			p.t.Fatalf("a packet to %s, which has no backends, goes to %s", e.Key, got)
		}
	case !slices.Contains(backends, got.String()):
		p.t.Fatalf("a packet to %s goes to %s, not to one of %v", e.Key, got, backends)
	case e.Value.Affinity > 0:
		at := kept{e.Value.ServiceID, e.Key.Family}
		if had := p.keeps[at]; had != "" && had != got.String() && slices.Contains(backends, had) {
			p.t.Fatalf("a packet to %s goes to %s although %s, where its client went before, is one of %v", e.Key, got, had, backends)
		}
		p.keeps[at] = got.String()
	}
}

// askAbsent checks that a packet to what was a frontend is left alone.
func (p *prober) askAbsent(key string) {
	p.t.Helper()
	at := strings.LastIndexByte(key, '/')
	to, err := netip.ParseAddrPort(key[:max(at, 0)])
	if err != nil {
		return // a route
	}
	proto := uint8(6)
	if key[at+1:] == "UDP" {
		proto = 17
	} else if n, err := strconv.Atoi(key[at+1:]); err == nil {
		proto = uint8(n)
	}
	p.passed++
	if got := p.run(to, proto); got != to {
		p.t.Fatalf("a packet to %s, which is no frontend any more, goes to %s", key, got)
	}
}
