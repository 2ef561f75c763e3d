// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// mapped is an IPv4 address as an IPv6 socket sees it.
func mapped(address netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(address.Addr().As16()), address.Port())
}

// open opens a client socket and closes it after the test.
func open(t *testing.T, p *testbed.Prober, dial probe.Dial) probe.Opened {
	t.Helper()
	opened, err := p.Open(dial)
	if err != nil {
		t.Fatal(err)
	}
	if opened.Failure != probe.None {
		t.Fatalf("open %s %s: %s", dial.Network, dial.Target, opened.Detail)
	}
	t.Cleanup(func() {
		if err := p.Close(opened.Session); err != nil {
			t.Error(err)
		}
	})
	return opened
}

// exchange makes one exchange on an open socket; failures of the network are
// in the answer.
func exchange(t *testing.T, p *testbed.Prober, request probe.Exchange) probe.Answer {
	t.Helper()
	answer, err := p.Exchange(request)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// TestPeerAddress proves that a socket connected to a service is told the
// service's address by getpeername and recvfrom.
func TestPeerAddress(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 1, PodsPerNode: 2})
	service := newService("peer", 1, stack.Pods()[1].Endpoint())
	serve(t, stack, service)
	each(t, func(t *testing.T, bypass bool, network string, family int) {
		p := prober(t, stack, &stack.Pods()[0].Host, bypass)
		target := clusterIP(service, family)
		opened := open(t, p, probe.Dial{Network: network, Target: target})
		if opened.Peer != target {
			t.Errorf("getpeername returns %s, want %s", opened.Peer, target)
		}
		for range 3 {
			if answer := exchange(t, p, probe.Exchange{Session: opened.Session}); answer.Failure != probe.None || answer.From != target {
				t.Errorf("got %+v, want an answer from %s", answer, target)
			}
		}
	})
}

// TestMappedAddress calls IPv4 services by IPv6 sockets.
func TestMappedAddress(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	pods := stack.Pods()
	near := newService("near", 1, pods[1].Endpoint())
	far := newService("far", 2, pods[2].Endpoint())
	serve(t, stack, near, far)
	for _, way := range ways {
		for _, service := range []testbed.Service{near, far} {
			p := prober(t, stack, &pods[0].Host, way.bypass)
			target := clusterIP(service, 4)
			for _, network := range networks {
				t.Run(fmt.Sprintf("%s/%s/%s/connected", way.name, service.Name, network), func(t *testing.T) {
					opened := open(t, p, probe.Dial{Network: network, Target: target, Mapped: true})
					answer := exchange(t, p, probe.Exchange{Session: opened.Session})
					if answer.Failure != probe.None || answer.Server != service.Endpoints[0].PodName ||
						answer.Client.Addr() != pods[0].IPv4 {
						t.Errorf("got %+v", answer)
					}
					if answer.From != mapped(target) || opened.Peer != mapped(target) {
						t.Errorf("answer from %s, peer %s, want %s", answer.From, opened.Peer, mapped(target))
					}
				})
			}
			t.Run(fmt.Sprintf("%s/%s/udp/unconnected", way.name, service.Name), func(t *testing.T) {
				opened := open(t, p, probe.Dial{Network: probe.UDP, Mapped: true})
				answer := exchange(t, p, probe.Exchange{Session: opened.Session, Target: target})
				if answer.Failure != probe.None || answer.Server != service.Endpoints[0].PodName || answer.From != mapped(target) {
					t.Errorf("got %+v, want an answer from %s", answer, mapped(target))
				}
			})
		}
	}
}

// TestUnconnectedUDP talks to more services by one socket than socket storage
// has room for, twice over, and to a plain pod in between.
func TestUnconnectedUDP(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	pods := stack.Pods()
	const count = 24
	var services []testbed.Service
	for n := range count {
		// Ports of their own, so that answers tell services apart: 24
		// services with the same backend are ambiguous to a socket.
		service := newService(fmt.Sprintf("many-%d", n), n+1, pods[1+n%3].Endpoint())
		for i := range service.Ports {
			service.Ports[i].Target = uint16(9000 + n)
		}
		services = append(services, service)
		if err := prober(t, stack, &pods[1+n%3].Host, false).Serve(uint16(9000 + n)); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, stack, services...)
	for _, way := range ways {
		for _, family := range families {
			t.Run(fmt.Sprintf("%s/v%d", way.name, family), func(t *testing.T) {
				p := prober(t, stack, &pods[0].Host, way.bypass)
				opened := open(t, p, probe.Dial{Network: probe.UDP, IPv6: family == 6})
				for range 2 {
					for n, service := range services {
						target := clusterIP(service, family)
						answer := exchange(t, p, probe.Exchange{Session: opened.Session, Target: target})
						if answer.Failure != probe.None || answer.Server != pods[1+n%3].Name || answer.From != target {
							t.Errorf("service %d: got %+v, want an answer of %s from %s", n, answer, pods[1+n%3].Name, target)
						}
						plain := netip.AddrPortFrom(pods[3].IP(family), echoPort)
						answer = exchange(t, p, probe.Exchange{Session: opened.Session, Target: plain})
						if answer.Failure != probe.None || answer.From != plain {
							t.Errorf("plain pod: got %+v, want an answer from %s", answer, plain)
						}
					}
				}
			})
		}
	}
}
