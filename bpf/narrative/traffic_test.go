// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// The tests of this file send real traffic of real sockets through the node:
// what no test run has, such as checksums that a device finishes, packets that
// stand for many, and redirects.

const patience = 10 * time.Second

// serve gives back what it is sent on a machine.
func (m *machine) serve(proto uint8, addr netip.AddrPort) {
	m.t.Helper()
	err := m.do(func() error {
		if proto == layout.ProtoUDP {
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
			if err != nil {
				return err
			}
			m.t.Cleanup(func() { c.Close() })
			go func() {
				buf := make([]byte, 65536)
				for {
					n, from, err := c.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					c.WriteToUDPAddrPort(buf[:n], from)
				}
			}()
			return nil
		}
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(context.Background(), "tcp", addr.String())
		if err != nil {
			return err
		}
		m.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					c.SetDeadline(time.Now().Add(patience))
					io.Copy(c, c)
				}()
			}
		}()
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// sink takes TCP connections and reads all that they bring.
func (m *machine) sink(addr netip.AddrPort) {
	m.t.Helper()
	err := m.do(func() error {
		l, err := net.Listen("tcp", addr.String())
		if err != nil {
			return err
		}
		m.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					io.Copy(io.Discard, c)
				}()
			}
		}()
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// dial opens a connection from an address of a machine.
func (m *machine) dial(proto uint8, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := m.do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(at(from, 0))}
		network := "tcp"
		if proto == layout.ProtoUDP {
			d.LocalAddr, network = net.UDPAddrFromAddrPort(at(from, 0)), "udp"
		}
		var err error
		c, err = d.DialContext(ctx, network, to.String())
		if err == nil {
			err = c.SetDeadline(time.Now().Add(patience))
		}
		return err
	})
	return c, err
}

// exchange sends data and reads it back.
func (m *machine) exchange(proto uint8, from netip.Addr, to netip.AddrPort, size int) error {
	c, err := m.dial(proto, from, to)
	if err != nil {
		return err
	}
	defer c.Close()
	data := make([]byte, size)
	rand.New(rand.NewSource(int64(size))).Read(data)
	if proto == layout.ProtoUDP {
		buf := make([]byte, 65536)
		for range 8 {
			if _, err := c.Write(data); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			n, err := c.Read(buf)
			if err != nil {
				return fmt.Errorf("receive: %w", err)
			}
			if !bytes.Equal(buf[:n], data) {
				return errors.New("the answer differs")
			}
		}
		return nil
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- err
	}()
	back := make([]byte, size)
	_, err = io.ReadFull(c, back)
	if err := <-sent; err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if !bytes.Equal(back, data) {
		return errors.New("other bytes came back")
	}
	return nil
}

// refused dials what must be refused at once.
func (m *machine) refused(proto uint8, from netip.Addr, to netip.AddrPort) {
	m.t.Helper()
	start := time.Now()
	c, err := m.dial(proto, from, to)
	if proto == layout.ProtoUDP && err == nil {
		if _, err = c.Write([]byte("a question")); err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) || time.Since(start) > patience/2 {
		m.t.Errorf("from %s to %s: %v after %s, want refused", from, to, err, time.Since(start))
	}
}

// forwarded is how many packets the node's stack has forwarded.
func (h *host) forwarded() int {
	h.t.Helper()
	file, pattern := "/proc/thread-self/net/snmp", `(?m)^Ip: \d+ \d+ \d+ \d+ \d+ (\d+)`
	if h.n == 6 {
		file, pattern = "/proc/thread-self/net/snmp6", `Ip6OutForwDatagrams\s+(\d+)`
	}
	b, err := os.ReadFile(file)
	if err != nil {
		h.t.Fatal(err)
	}
	f := regexp.MustCompile(pattern).FindSubmatch(b)
	if f == nil {
		h.t.Fatalf("no counter in %s", file)
	}
	n, _ := strconv.Atoi(string(f[1]))
	return n
}

// wires connects the cast of a story: two pods, and beyond the uplink the other
// node, its pod and the outside.
func (h *host) wires(uplinkMTU int) (a, b, beyond *machine) {
	h.t.Helper()
	a = newMachine(h.t, "wirea", bpf.Pod, 1500, h.podA)
	b = newMachine(h.t, "wireb", bpf.Pod, 1500, h.podB)
	beyond = newMachine(h.t, "wireu", bpf.Uplink, uplinkMTU, h.podC, h.outside)
	return a, b, beyond
}

func TestTraffic(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		a, b, beyond := h.wires(1500)
		backend := func(addr netip.Addr) netip.AddrPort { return at(addr, 8080) }
		a.serve(h.proto, backend(h.podA))
		b.serve(h.proto, backend(h.podB))
		beyond.serve(h.proto, backend(h.podC))
		h.service(at(h.vip, 80), layout.FrontendClusterIP, local(backend(h.podB)))
		h.service(at(h.vip2, 80), layout.FrontendClusterIP, remote(backend(h.podC)))
		h.service(at(h.vip, 81), layout.FrontendClusterIP, local(backend(h.podA)))
		h.service(at(h.node, 30080), layout.FrontendNodePort, local(backend(h.podB)))
		h.service(at(h.node, 30081), layout.FrontendNodePort, remote(backend(h.podC)))
		size := 2 << 20
		if h.proto == layout.ProtoUDP {
			size = 1000
		}
		for _, fast := range []bool{false, true} {
			if fast {
				h.fastPath()
			}
			for _, s := range []struct {
				name string
				m    *machine
				from netip.Addr
				to   netip.AddrPort
				fast bool // may take the fast path
			}{
				{"pod to pod", a, h.podA, backend(h.podB), true},
				{"pod to service here", a, h.podA, at(h.vip, 80), true},
				{"pod to service there", a, h.podA, at(h.vip2, 80), true},
				{"pod to itself by a service", a, h.podA, at(h.vip, 81), false},
				{"outside to node port here", beyond, h.outside, at(h.node, 30080), false},
				{"outside to node port there", beyond, h.outside, at(h.node, 30081), false},
				{"pod there to pod here by a node port", beyond, h.podC, at(h.node, 30080), true},
			} {
				name := s.name
				if fast {
					name += ", fast"
				}
				before := h.forwarded()
				if err := s.m.exchange(h.proto, s.from, s.to, size); err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				// Opening and close go through the stack; nothing else may.
				n := h.forwarded() - before
				if few := n <= 14; h.proto == layout.ProtoTCP && s.to != at(h.vip, 81) && few != (fast && s.fast) {
					t.Errorf("%s: the stack forwarded %d packets", name, n)
				}
			}
		}
	})
}

// A client is told at once, by its own kernel: so it believed the answer.
func TestTrafficToNoBackend(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		a, _, beyond := h.wires(1500)
		h.service(at(h.vip, 80), layout.FrontendClusterIP)
		h.service(at(h.node, 30080), layout.FrontendNodePort)
		for _, s := range []struct {
			m    *machine
			from netip.Addr
			to   netip.AddrPort
		}{{a, h.podA, at(h.vip, 80)}, {beyond, h.outside, at(h.node, 30080)}} {
			s.m.refused(h.proto, s.from, s.to)
		}
	})
}

// The uplink takes less than the pod's device: the node's own errors must reach
// the pod as ones about the connection that it knows.
func TestTrafficThroughASmallMTU(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		a, _, beyond := h.wires(1300)
		beyond.sink(at(h.podC, 8080))
		h.service(at(h.vip, 80), layout.FrontendClusterIP, remote(at(h.podC, 8080)))
		for _, fast := range []bool{false, true} {
			if fast {
				h.fastPath()
			}
			c, err := a.dial(h.proto, h.podA, at(h.vip, 80))
			if err != nil {
				t.Fatal(err)
			}
			// Not acknowledged, it would not fit.
			c.(*net.TCPConn).SetWriteBuffer(64 << 10)
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				t.Errorf("fast %v: %v", fast, err)
			}
			c.Close()
		}
	})
}

// The port of a backend that is not there: the pod's own answer.
func TestTrafficToClosedPort(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		a, _, _ := h.wires(1500)
		for _, b := range []where{local(at(h.podB, 9)), remote(at(h.podC, 9)), local(at(h.podA, 9))} {
			h.service(at(h.vip, 80), layout.FrontendClusterIP, b)
			a.refused(h.proto, h.podA, at(h.vip, 80))
		}
	})
}

// A pod that marks its packets as finished, as only these programs may, is not
// believed: its answers are translated.
func TestTrafficWithForgedMark(t *testing.T) {
	each(t, both, func(t *testing.T, h *host) {
		a, b, _ := h.wires(1500)
		forge, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, 0x4d52), // TC_INDEX_FINISHED
			asm.StoreMem(asm.R1, 44, asm.R2, asm.Word),
			asm.Mov.Imm(asm.R0, -1),
			asm.Return(),
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer forge.Close()
		for _, m := range []*machine{a, b} {
			err := m.do(func() error {
				eth, err := net.InterfaceByName("eth0")
				if err != nil {
					return err
				}
				l, err := link.AttachTCX(link.TCXOptions{Interface: eth.Index, Program: forge, Attach: ebpf.AttachTCXEgress})
				if err == nil {
					t.Cleanup(func() { l.Close() })
				}
				return err
			})
			if errors.Is(err, link.ErrNotSupported) {
				t.Skip("no tcx here: the mark cannot be forged in the pod")
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		b.serve(h.proto, at(h.podB, 8080))
		h.service(at(h.vip, 80), layout.FrontendClusterIP, local(at(h.podB, 8080)))
		if err := a.exchange(h.proto, h.podA, at(h.vip, 80), 1000); err != nil {
			t.Error(err)
		}
	})
}
