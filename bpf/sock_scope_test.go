// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

func TestDisabledPasses(t *testing.T) {
	r := newSockRig(t, Options{})
	backend := udpServer(t, "127.0.0.1:0")
	svc := r.service(layout.ProtoUDP, "127.9.9.9:53", 0, backend)
	r.configure(0)
	fd := socket(t, unix.AF_INET, unix.SOCK_DGRAM)
	if err := unix.Connect(fd, sockaddr(unix.AF_INET, svc)); err != nil {
		t.Fatal(err)
	}
	r.configure(layout.ConfigEnabled) // would be seen now, had it been translated
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := read(fd, make([]byte, 10)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("answered by a backend: %v", err)
	}
}

func TestHairpinIsLeftAlone(t *testing.T) {
	for _, proto := range []uint8{layout.ProtoTCP, layout.ProtoUDP} {
		for _, c := range []struct{ name, own, other, front string }{
			{"v4", "10.1.0.5:8080", "10.1.0.6:8081", "127.5.5.5:80"},
			{"v6", "[fd01::5]:8080", "[fd01::6]:8081", "[fd01::100]:80"},
		} {
			t.Run(fmt.Sprintf("%s-%d", c.name, proto), func(t *testing.T) {
				r := newSockRig(t, Options{})
				own, other := netip.MustParseAddrPort(c.own), netip.MustParseAddrPort(c.other)
				write := func(b netip.AddrPort, flags layout.BackendFlags) netip.AddrPort {
					ap := netip.MustParseAddrPort(c.front)
					if ap.Addr().Is4() {
						writeService[layout.V4](r, r.d.V4, proto, ap, 0, flags, []netip.AddrPort{b})
					} else {
						writeService[layout.V6](r, r.d.V6, proto, ap, 0, flags, []netip.AddrPort{b})
					}
					return ap
				}
				inNetns(t, func() {
					addAddress(t, own.Addr().String()+"/"+fmt.Sprint(own.Addr().BitLen()))
					addAddress(t, other.Addr().String()+"/"+fmt.Sprint(other.Addr().BitLen()))
					front := netip.MustParseAddrPort(c.front)
					if front.Addr().Is6() {
						addAddress(t, front.Addr().String()+"/128")
					}
					// A server at the frontend's own address tells that a call
					// was left alone.
					if proto == layout.ProtoTCP {
						tcpServer(t, c.own)
						tcpServer(t, c.front)
					} else {
						udpServer(t, c.own)
						udpServer(t, c.front)
					}
					family, typ := unix.AF_INET, unix.SOCK_STREAM
					if own.Addr().Is6() {
						family = unix.AF_INET6
					}
					if proto == layout.ProtoUDP {
						typ = unix.SOCK_DGRAM
					}
					talk := func() string {
						fd := socket(t, family, typ)
						if err := unix.Connect(fd, sockaddr(family, front)); err != nil {
							return err.Error()
						}
						unix.Write(fd, []byte("x"))
						buf := make([]byte, 100)
						n, err := read(fd, buf)
						if err != nil {
							return err.Error()
						}
						return string(buf[:n])
					}
					write(own, layout.BackendLocal)
					if got := talk(); got != c.front {
						t.Errorf("own backend: reached %s", got)
					}
					// A host's backend cannot be a pod; another node's neither.
					write(own, layout.BackendLocal|layout.BackendHostNetwork)
					if got := talk(); got != c.own {
						t.Errorf("host's backend: reached %s", got)
					}
					write(own, 0)
					if got := talk(); got != c.own {
						t.Errorf("remote backend: reached %s", got)
					}
					// Local, but nobody listens here: some other pod.
					write(other, layout.BackendLocal)
					if got := talk(); got == c.front {
						t.Error("other local backend: left alone")
					}
				})
			})
		}
	}
}

func TestHostOnlyFrontend(t *testing.T) {
	r := newSockRig(t, Options{})
	backend := tcpServer(t, "127.0.0.1:0")
	svc := r.service(layout.ProtoTCP, "127.0.0.1:30080", layout.FrontendNodePort|layout.FrontendHostOnly, backend)
	connect := func() error {
		return unix.Connect(socket(t, unix.AF_INET, unix.SOCK_STREAM), sockaddr(unix.AF_INET, svc))
	}
	if err := connect(); err != nil {
		t.Errorf("from the host: %v", err)
	}
	inNetns(t, func() {
		tcpServer(t, backend.String()) // would be reached
		if err := connect(); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("from a pod: %v", err)
		}
	})
}
