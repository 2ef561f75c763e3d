// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

// BenchmarkHooks reports what the kernel's own statistics say a run of a hook's
// program takes, in real calls among 10,000 services. They include the 25 to
// 30 ns that measuring takes.
func BenchmarkHooks(b *testing.B) {
	const services = 10000
	type target struct {
		name string
		typ  int
		addr func(i int) netip.AddrPort
	}
	for _, c := range []struct {
		name     string
		family   int
		loopback string
		frontend func(i int) netip.AddrPort
	}{
		{"v4", unix.AF_INET, "127.0.0.1", func(i int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80)
		}},
		{"v6", unix.AF_INET6, "::1", func(i int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)}), 80)
		}},
	} {
		needKernel(b)
		r := newSockRig(b, Options{MaxFrontends: 1 << 16, MaxBackends: 1 << 17})
		tcp, udp := tcpServer(b, hostPort(c.loopback, 0)), udpServer(b, hostPort(c.loopback, 0))
		for i := range services {
			f := c.frontend(i).String()
			r.service(layout.ProtoTCP, f, 0, tcp)
			r.service(layout.ProtoUDP, f, 0, udp)
		}
		// Of these the client keeps the one backend that answers.
		sticky := map[int]netip.AddrPort{}
		for _, n := range []int{1, 10, 5000} {
			sticky[n] = r.sticky(n, netip.AddrPortFrom(c.frontend(n).Addr(), 81), tcp)
		}
		stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
		if err != nil {
			b.Fatal(err)
		}
		for _, t := range []target{
			{"tcp/service", unix.SOCK_STREAM, func(i int) netip.AddrPort { return c.frontend(i % services) }},
			{"tcp/other", unix.SOCK_STREAM, func(int) netip.AddrPort { return tcp }},
			{"tcp/one-service", unix.SOCK_STREAM, func(int) netip.AddrPort { return c.frontend(5) }},
			{"tcp/affinity-1", unix.SOCK_STREAM, func(int) netip.AddrPort { return sticky[1] }},
			{"tcp/affinity-10", unix.SOCK_STREAM, func(int) netip.AddrPort { return sticky[10] }},
			{"tcp/affinity-5000", unix.SOCK_STREAM, func(int) netip.AddrPort { return sticky[5000] }},
			{"udp/service", unix.SOCK_DGRAM, func(i int) netip.AddrPort { return c.frontend(i % services) }},
			{"udp/other", unix.SOCK_DGRAM, func(int) netip.AddrPort { return udp }},
		} {
			b.Run(fmt.Sprintf("connect/%s/%s", c.name, t.name), func(b *testing.B) {
				prog := r.d.Program("sock_connect" + c.name[1:])
				before, err := prog.Stats()
				if err != nil {
					b.Fatal(err)
				}
				for i := range b.N {
					fd, err := unix.Socket(c.family, t.typ|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						b.Fatal(err)
					}
					if err := unix.Connect(fd, sockaddr(c.family, t.addr(i*7919))); err != nil {
						b.Fatal(err)
					}
					unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
					unix.Close(fd)
				}
				after, err := prog.Stats()
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount), "ns/run")
			})
		}
		for _, h := range []string{"sendmsg", "recvmsg"} {
			b.Run(fmt.Sprintf("%s/%s", h, c.name), func(b *testing.B) {
				prog := r.d.Program("sock_" + h + c.name[1:])
				fd := socket(b, c.family, unix.SOCK_DGRAM)
				before, err := prog.Stats()
				if err != nil {
					b.Fatal(err)
				}
				for range b.N {
					if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(c.family, c.frontend(5))); err != nil {
						b.Fatal(err)
					}
					answer(b, fd)
				}
				after, err := prog.Stats()
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount), "ns/run")
			})
		}
		stats.Close()
	}
}

// sticky programs a service with affinity of which this namespace keeps the
// backend that answers, among n.
func (r *sockRig) sticky(n int, frontend, answers netip.AddrPort) netip.AddrPort {
	r.Helper()
	r.affinity = 3600
	defer func() { r.affinity = 0 }()
	r.service(layout.ProtoTCP, frontend.String(), 0, answers)
	family := unix.AF_INET
	if frontend.Addr().Is6() {
		family = unix.AF_INET6
	}
	if err := unix.Connect(socket(r, family, unix.SOCK_STREAM), sockaddr(family, frontend)); err != nil {
		r.Fatal(err)
	}
	backends := []netip.AddrPort{answers}
	for port := uint16(1); len(backends) < n; port++ {
		backends = append(backends, netip.AddrPortFrom(answers.Addr().Next(), port))
	}
	r.id-- // the same service, with more backends
	return r.service(layout.ProtoTCP, frontend.String(), 0, backends...)
}
