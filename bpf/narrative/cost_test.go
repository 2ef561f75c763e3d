// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/millrace-project/millrace/bpf/layout"
)

const (
	costFlows     = 4096
	costFirstPort = 20000
)

// carousel is a program that turns the packet of a test run into the next
// flow's and then tail-calls another program, so that one long run goes through
// many flows, each as cold as its turn is far. Calling an empty program, it
// measures what it costs itself.
type carousel struct {
	flows, next *ebpf.Map
	prog        *ebpf.Program
}

// tableOff is where the ports are in the carousel's map, behind a counter and
// the packet's ends.
const tableOff = 48

// newCarousel makes one that restores a frame's ends, which begin at off, but
// for the port at portOff, which is the next of the table.
func newCarousel(b *testing.B, frame []byte, off, endsLen, portOff int, ports []uint16) *carousel {
	b.Helper()
	ends := frame[off : off+endsLen]
	value := make([]byte, tableOff)
	copy(value[8:], ends)
	for _, p := range ports {
		value = binary.BigEndian.AppendUint16(value, p)
	}
	flows, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(value)), MaxEntries: 1})
	if err != nil {
		b.Fatal(err)
	}
	if err := flows.Put(uint32(0), value); err != nil {
		b.Fatal(err)
	}
	next, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		b.Fatal(err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, flows.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.LoadMem(asm.R1, asm.R7, 0, asm.Word),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R7, 0, asm.R1, asm.Word),
		asm.And.Imm(asm.R1, costFlows-1),
		asm.LSh.Imm(asm.R1, 1),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Reg(asm.R2, asm.R1),
		asm.LoadMem(asm.R1, asm.R2, tableOff, asm.Half),
		asm.StoreMem(asm.R7, int16(8+portOff-off), asm.R1, asm.Half),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, int32(off)),
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.Add.Imm(asm.R3, 8),
		asm.Mov.Imm(asm.R4, int32(len(ends))),
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, next.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	}})
	if err != nil {
		b.Fatalf("%+v", err)
	}
	c := &carousel{flows: flows, next: next, prog: prog}
	b.Cleanup(func() { flows.Close(); next.Close(); prog.Close() })
	return c
}

// measure runs a program over all flows, in turn with an empty one, and returns
// the medians of what it takes more than the empty one and of that one itself.
func (c *carousel) measure(b *testing.B, dev string, frame []byte, prog, empty *ebpf.Program, n int) (net, base time.Duration) {
	b.Helper()
	run := func(p *ebpf.Program) time.Duration {
		if err := c.next.Put(uint32(0), p); err != nil {
			b.Fatal(err)
		}
		opts := ebpf.RunOptions{Data: frame, Repeat: uint32(n), Context: skbuff{Ifindex: uint32(node.devs[dev].Index)}}
		start := time.Now()
		if _, err := c.prog.Run(&opts); err != nil {
			b.Fatal(err)
		}
		return time.Since(start) / time.Duration(n)
	}
	var nets, bases []time.Duration
	// Short rounds: most of them are not disturbed by what else the machine does.
	for range 101 {
		e := run(empty)
		nets, bases = append(nets, run(prog)-e), append(bases, e)
	}
	slices.Sort(nets)
	slices.Sort(bases)
	return nets[len(nets)/2], bases[len(bases)/2]
}

// check runs a program on one flow's packet, which must come out as wanted.
func (c *carousel) check(b *testing.B, h *host, dev string, frame []byte, prog *ebpf.Program, verdict uint32, changed bool) {
	b.Helper()
	if err := c.next.Put(uint32(0), prog); err != nil {
		b.Fatal(err)
	}
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64), Context: skbuff{Ifindex: uint32(node.devs[dev].Index)}}
	v, err := c.prog.Run(&opts)
	if err != nil {
		b.Fatal(err)
	}
	if v != verdict {
		b.Fatalf("verdict %s, want %s", verdictName(v), verdictName(verdict))
	}
	// The flow's own port makes the checksum wrong: only the addresses count.
	in, out := frame[14:14+h.ipLen], opts.DataOut[14:14+h.ipLen]
	addrs := h.ipLen - 2*h.node.BitLen()/8
	if got := !bytes.Equal(in[addrs:], out[addrs:]); got != changed {
		b.Fatalf("translated: %v, want %v", got, changed)
	}
}

// BenchmarkEstablished prints what a packet of an established flow costs in one
// program, over 4,096 flows, net of an empty program.
func BenchmarkEstablished(b *testing.B) {
	if node.d == nil {
		b.Skip("not root: programs cannot be loaded")
	}
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	if err != nil {
		b.Fatal(err)
	}
	defer empty.Close()
	for _, f := range families {
		for _, c := range []struct {
			name              string
			clientDev, outDev string
			hook              string
			reply, fast       bool
		}{
			{name: "pod-ingress/plain", clientDev: "poda", outDev: "podb", hook: "ingress"},
			{name: "pod-egress/plain", clientDev: "poda", outDev: "podb", hook: "egress"},
			{name: "uplink-ingress/plain", clientDev: "poda", outDev: "uplink", hook: "ingress", reply: true},
			{name: "pod-ingress/dnat", clientDev: "poda", outDev: "podb", hook: "ingress"},
			{name: "pod-egress/un-dnat", clientDev: "poda", outDev: "podb", hook: "egress", reply: true},
			{name: "uplink-egress/snat", clientDev: "uplink", outDev: "uplink", hook: "egress"},
			{name: "uplink-ingress/un-snat", clientDev: "uplink", outDev: "uplink", hook: "ingress", reply: true},
			{name: "pod-ingress/fast-to-pod", clientDev: "poda", outDev: "podb", hook: "ingress", fast: true},
			{name: "pod-ingress/fast-to-uplink", clientDev: "poda", outDev: "uplink", hook: "ingress", fast: true},
		} {
			b.Run(f.name+"/"+c.name, func(b *testing.B) {
				h := newHost(b, f, layout.ProtoTCP)
				benchmarkFlows(b, h, c.name, c.clientDev, c.outDev, c.hook, c.reply, c.fast, empty)
			})
		}
	}
}

func benchmarkFlows(b *testing.B, h *host, name, clientDev, outDev, hook string, reply, fast bool, empty *ebpf.Program) {
	b.Helper()
	client, frontend, backend := h.podA, at(h.vip, 80), at(h.podB, 8080)
	if outDev == "uplink" {
		backend = at(h.podC, 8080)
	}
	if clientDev == "uplink" {
		client, frontend = h.outside, at(h.node, 30080)
	}
	plain := name[len(name)-5:] == "plain"
	if plain {
		frontend = backend
	} else {
		flags := layout.BackendFlags(0)
		if outDev == "podb" {
			flags = layout.BackendLocal
		}
		h.service(frontend, layout.FrontendClusterIP, where{backend, flags})
	}
	if clientDev == "uplink" {
		h.configure(func(c *layout.Config) { c.SnatPortFirst, c.SnatPortLast = 20000, 60000 })
	}
	// The measured packet: where the program meets it.
	var frame []byte
	var ports []uint16
	for i := range uint16(costFlows) {
		c := at(client, costFirstPort+i)
		got := h.through(clientDev, outDev, segment(c, frontend, syn, 1000, 0))
		h.through(outDev, clientDev, segment(backend, got.src, syn|ack, 5000, 1001))
		stack := h.in(clientDev, segment(c, frontend, ack, 1001, 5001))
		h.out(outDev, stack)
		if hook == "ingress" && reply {
			ports = append(ports, got.src.Port())
		} else {
			ports = append(ports, c.Port())
		}
		if i > 0 {
			continue
		}
		switch {
		case !reply && hook == "ingress":
			frame = h.build(h.data(c, frontend, "payload"))
		case !reply:
			frame = h.build(h.data(stack.src, stack.dst, "payload"))
		case hook == "ingress":
			frame = h.build(h.data(backend, got.src, "payload"))
		default:
			frame = h.build(h.data(stack.dst, stack.src, "payload"))
		}
	}
	off := 14 + h.ipLen - 2*len(client.AsSlice())
	portOff := 14 + h.ipLen
	if reply {
		portOff += 2
	}
	dev, role := clientDev, "pod"
	if (hook == "egress") != reply {
		dev = outDev
	}
	if dev == "uplink" {
		role = "uplink"
	}
	mac := node.devs[dev].HardwareAddr
	if hook == "ingress" {
		copy(frame, mac)
	}
	wheel := newCarousel(b, frame, off, 14+h.ipLen+4-off, portOff, ports)
	prog := node.d.Program("tc_" + role + "_" + hook)
	verdict := uint32(pass)
	if fast {
		h.fastPath()
		verdict = redirect
	}
	wheel.check(b, h, dev, frame, prog, verdict, !plain)
	took, base := wheel.measure(b, dev, frame, prog, empty, 2*costFlows)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took), "ns/packet")
	b.ReportMetric(float64(base), "ns/empty")
}
