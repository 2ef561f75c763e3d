// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestBackendMoves replaces the backend of a service: new connections and
// unconnected datagrams go to the new one, open connections stay where they
// are while the old one lives.
func TestBackendMoves(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 3, PodsPerNode: 2})
	pods := stack.Pods()
	callers := []struct {
		name   string
		prober *testbed.Prober
		target func(service testbed.Service, family int) netip.AddrPort
	}{
		{"pod-sockets", prober(t, stack, &pods[0].Host, false), clusterIP},
		{"pod-packets", prober(t, stack, &pods[0].Host, true), clusterIP},
		{"external", prober(t, stack, stack.Client, false),
			func(s testbed.Service, family int) netip.AddrPort { return nodePort(s, stack.Nodes[0], family) }},
	}
	moves := []struct {
		name     string
		from, to *testbed.Pod
	}{
		{"to-other-node", pods[1], pods[2]},
		{"to-this-node", pods[2], pods[1]},
		{"among-other-nodes", pods[2], pods[4]},
	}
	for n, move := range moves {
		t.Run(move.name, func(t *testing.T) {
			service := newService(fmt.Sprintf("moving-%d", n), n+1, move.from.Endpoint())
			serve(t, stack, service)
			type conversation struct {
				name    string
				prober  *testbed.Prober
				request probe.Exchange
				stays   bool
				dial    probe.Dial
			}
			var conversations []conversation
			for _, caller := range callers {
				for _, family := range families {
					target := caller.target(service, family)
					tcp := probe.Dial{Network: probe.TCP, Target: target}
					opened := open(t, caller.prober, tcp)
					conversations = append(conversations, conversation{
						fmt.Sprintf("%s/tcp/v%d", caller.name, family), caller.prober,
						probe.Exchange{Session: opened.Session}, true, tcp})
					opened = open(t, caller.prober, probe.Dial{Network: probe.UDP, IPv6: family == 6})
					conversations = append(conversations, conversation{
						fmt.Sprintf("%s/udp/v%d", caller.name, family), caller.prober,
						probe.Exchange{Session: opened.Session, Target: target}, false,
						probe.Dial{Network: probe.UDP, Target: target}})
				}
			}
			for _, c := range conversations {
				// Twice: the second request makes the flow an established one.
				for range 2 {
					if answer := exchange(t, c.prober, c.request); answer.Server != move.from.Name {
						t.Fatalf("%s before: %+v", c.name, answer)
					}
				}
			}
			service.Endpoints = []testbed.Endpoint{move.to.Endpoint()}
			serve(t, stack, service)
			for _, c := range conversations {
				want := move.to.Name
				if c.stays {
					want = move.from.Name
				}
				if answer := exchange(t, c.prober, c.request); answer.Server != want {
					t.Errorf("%s open socket after: %+v, want %s", c.name, answer, want)
				}
				if answer := ask(t, c.prober, c.dial); answer.Server != move.to.Name {
					t.Errorf("%s new socket after: %+v, want %s", c.name, answer, move.to.Name)
				}
			}
		})
	}
}

// TestFrontendChanges edits the ports and addresses of a service: the new
// ones work, the old ones do not.
func TestFrontendChanges(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	pods := stack.Pods()
	before := newService("edited", 1, pods[1].Endpoint(), pods[2].Endpoint())
	after := newService("edited", 1, pods[1].Endpoint(), pods[2].Endpoint())
	for i := range after.Ports {
		after.Ports[i].Port, after.Ports[i].NodePort = 81, 30500
	}
	for _, family := range families {
		after.ExternalIPs[family/6] = testbed.ExternalIP(family, 50)
		after.LoadBalancerIPs[family/6] = testbed.ExternalIP(family, 51)
	}
	addresses := func(s testbed.Service, family int) []netip.AddrPort {
		port := s.Ports[0].Port
		return []netip.AddrPort{
			netip.AddrPortFrom(s.ClusterIPs[family/6], port),
			netip.AddrPortFrom(s.ExternalIPs[family/6], port),
			netip.AddrPortFrom(s.LoadBalancerIPs[family/6], port),
			nodePort(s, stack.Nodes[0], family),
		}
	}
	check := func(works, fails testbed.Service) {
		t.Helper()
		for _, way := range ways {
			p := prober(t, stack, &pods[0].Host, way.bypass)
			var good, bad []probe.Dial
			for _, network := range networks {
				for _, family := range families {
					for _, target := range addresses(works, family) {
						good = append(good, probe.Dial{Network: network, Target: target})
					}
					for _, target := range addresses(fails, family) {
						bad = append(bad, probe.Dial{Network: network, Target: target, Timeout: quick})
					}
				}
			}
			for i, answer := range askAll(t, p, good) {
				if answer.Failure != probe.None {
					t.Errorf("%s %s %s: %+v", way.name, good[i].Network, good[i].Target, answer)
				}
			}
			for i, answer := range askAll(t, p, bad) {
				if answer.Failure == probe.None {
					t.Errorf("%s %s %s still works: %+v", way.name, bad[i].Network, bad[i].Target, answer)
				}
			}
		}
	}
	serve(t, stack, before)
	check(before, after)
	serve(t, stack, after)
	check(after, before)
	serve(t, stack, before)
	check(before, after)
}

// TestSamePort opens connections by two frontends of one service from the
// same client port: to the backend they are one flow unless one of them is
// given another source.
func TestSamePort(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	pods := stack.Pods()
	near := newService("near", 1, pods[1].Endpoint())
	far := newService("far", 2, pods[2].Endpoint())
	serve(t, stack, near, far)
	for _, service := range []testbed.Service{near, far} {
		for _, caller := range []struct {
			name   string
			prober *testbed.Prober
			first  func(family int) netip.AddrPort
		}{
			{"pod-packets", prober(t, stack, &pods[0].Host, true),
				func(family int) netip.AddrPort { return clusterIP(service, family) }},
			{"external", prober(t, stack, stack.Client, false),
				func(family int) netip.AddrPort { return nodePort(service, stack.Nodes[0], family) }},
		} {
			for i, network := range networks {
				for _, family := range families {
					t.Run(fmt.Sprintf("%s/%s/%s/v%d", service.Name, caller.name, network, family), func(t *testing.T) {
						bind := netip.AddrPortFrom(netip.Addr{}, uint16(20000+i))
						targets := []netip.AddrPort{
							caller.first(family),
							netip.AddrPortFrom(service.ExternalIPs[family/6], 80),
							netip.AddrPortFrom(service.LoadBalancerIPs[family/6], 80),
						}
						var sessions []int
						for _, target := range targets {
							dial := probe.Dial{Network: network, Target: target, Bind: bind}
							sessions = append(sessions, open(t, caller.prober, dial).Session)
						}
						for range 3 {
							for k, session := range sessions {
								answer := exchange(t, caller.prober, probe.Exchange{Session: session})
								if answer.Failure != probe.None || answer.From != targets[k] {
									t.Errorf("%s: got %+v", targets[k], answer)
								}
							}
						}
					})
				}
			}
		}
	}
}
