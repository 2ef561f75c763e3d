// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// client is where and how a client calls.
type client struct {
	name   string
	host   *testbed.Host
	bypass bool
	// external clients are on no node.
	external bool
}

// frontend is a kind of address that clients dial.
type frontend struct {
	name string
	addr func(service testbed.Service, family int) netip.AddrPort
	// entry is the node that a call enters by its uplink; nil if clients on
	// a node are served by that node.
	entry *testbed.Node
	// external clients can dial it.
	external bool
	// hostSockets alone can dial it.
	hostSockets bool
}

// TestFrontends calls every kind of frontend, over TCP and UDP, IPv4 and
// IPv6, from every kind of client, through sockets and through packets, with
// the backend at every kind of place.
func TestFrontends(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 3, PodsPerNode: 2})
	node1, node2 := stack.Nodes[0], stack.Nodes[1]

	backends := []struct {
		name     string
		host     *testbed.Host
		node     *testbed.Node
		endpoint testbed.Endpoint
	}{
		{"same-node", &node1.Pods[1].Host, node1, node1.Pods[1].Endpoint()},
		{"other-node", &node2.Pods[0].Host, node2, node2.Pods[0].Endpoint()},
		{"same-host", &node1.Host, node1, node1.Endpoint()},
		{"other-host", &node2.Host, node2, node2.Endpoint()},
	}
	clients := []client{
		{name: "pod-sockets", host: &node1.Pods[0].Host},
		{name: "pod-packets", host: &node1.Pods[0].Host, bypass: true},
		{name: "host-sockets", host: &node1.Host},
		{name: "external", host: stack.Client, external: true},
	}
	frontends := []frontend{
		{name: "cluster-ip", addr: clusterIP},
		{name: "node-port", external: true,
			addr: func(s testbed.Service, family int) netip.AddrPort { return nodePort(s, node1, family) }},
		{name: "node-port-of-other-node", external: true, entry: node2,
			addr: func(s testbed.Service, family int) netip.AddrPort { return nodePort(s, node2, family) }},
		{name: "node-port-loopback", hostSockets: true,
			addr: func(s testbed.Service, family int) netip.AddrPort {
				if family == 6 {
					return netip.AddrPortFrom(netip.IPv6Loopback(), s.Ports[0].NodePort)
				}
				return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.Ports[0].NodePort)
			}},
		{name: "external-ip", external: true,
			addr: func(s testbed.Service, family int) netip.AddrPort {
				return netip.AddrPortFrom(s.ExternalIPs[family/6], 80)
			}},
		{name: "load-balancer", external: true,
			addr: func(s testbed.Service, family int) netip.AddrPort {
				return netip.AddrPortFrom(s.LoadBalancerIPs[family/6], 80)
			}},
	}

	type call struct {
		name        string
		client      client
		dial        probe.Dial
		server      string
		backend     netip.Addr
		source      netip.Addr
		answer      probe.Answer
		proberError error
	}
	var calls []*call
	var services []testbed.Service
	for n, backend := range backends {
		service := newService(backend.name, n+1, backend.endpoint)
		services = append(services, service)
		for _, client := range clients {
			for _, frontend := range frontends {
				if client.external && !frontend.external ||
					frontend.hostSockets && client.name != "host-sockets" {
					continue
				}
				entry := frontend.entry
				if client.external && entry == nil {
					entry = node1
				}
				for _, network := range networks {
					for _, family := range families {
						source := client.host.IP(family)
						if entry != nil && entry != backend.node {
							source = entry.IP(family)
						}
						calls = append(calls, &call{
							name:    fmt.Sprintf("%s/%s/to-%s/%s/v%d", client.name, frontend.name, backend.name, network, family),
							client:  client,
							dial:    probe.Dial{Network: network, Target: frontend.addr(service, family), Timeout: 3 * time.Second},
							server:  backend.host.Name,
							backend: backend.host.IP(family),
							source:  source,
						})
					}
				}
			}
		}
	}
	serve(t, stack, services...)

	probers := map[string]*testbed.Prober{}
	for _, client := range clients {
		probers[client.name] = prober(t, stack, client.host, client.bypass)
	}
	// Side by side, so that what fails does not take minutes.
	var group sync.WaitGroup
	slots := make(chan struct{}, 16)
	for _, call := range calls {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			call.answer, call.proberError = probers[call.client.name].Once(call.dial, probe.Exchange{})
		})
	}
	group.Wait()
	for _, call := range calls {
		t.Run(call.name, func(t *testing.T) {
			if call.proberError != nil {
				t.Fatal(call.proberError)
			}
			got := call.answer
			if got.Failure != probe.None {
				t.Fatalf("%s %s: %s: %s", call.dial.Network, call.dial.Target, got.Failure, got.Detail)
			}
			if got.Server != call.server || got.Address != netip.AddrPortFrom(call.backend, echoPort) {
				t.Errorf("%s answered on %s, want %s on %s", got.Server, got.Address, call.server, call.backend)
			}
			if got.Client.Addr() != call.source {
				t.Errorf("backend sees %s, want %s", got.Client.Addr(), call.source)
			}
			if got.From != call.dial.Target {
				t.Errorf("answer comes from %s, want %s", got.From, call.dial.Target)
			}
		})
	}
}

// TestHairpin calls a service whose only backend is the caller.
func TestHairpin(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 1})
	pod := stack.Nodes[0].Pods[0]
	service := newService("hairpin", 1, pod.Endpoint())
	serve(t, stack, service)
	each(t, func(t *testing.T, bypass bool, network string, family int) {
		for name, target := range map[string]netip.AddrPort{
			"cluster-ip":              clusterIP(service, family),
			"node-port":               nodePort(service, stack.Nodes[0], family),
			"node-port-of-other-node": nodePort(service, stack.Nodes[1], family),
		} {
			answer := ask(t, prober(t, stack, &pod.Host, bypass), probe.Dial{Network: network, Target: target})
			if answer.Failure != probe.None || answer.Server != pod.Name || answer.From != target {
				t.Errorf("%s: got %+v", name, answer)
			}
			// With its own address as the source the pod would answer itself
			// past the translation.
			if answer.Client.Addr() == pod.IP(family) && answer.Client == answer.Local {
				t.Errorf("%s: backend sees the caller's own socket %s", name, answer.Client)
			}
		}
	})
}

// TestBalance calls a service with several backends until each has answered.
func TestBalance(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 3, PodsPerNode: 2})
	var endpoints []testbed.Endpoint
	want := map[string]bool{}
	for _, pod := range stack.Pods()[1:] {
		endpoints = append(endpoints, pod.Endpoint())
		want[pod.Name] = true
	}
	service := newService("balance", 1, endpoints...)
	serve(t, stack, service)
	each(t, func(t *testing.T, bypass bool, network string, family int) {
		const calls = 400
		dial := probe.Dial{Network: network, Target: clusterIP(service, family)}
		answers, err := prober(t, stack, &stack.Pods()[0].Host, bypass).Many(calls, dial, probe.Exchange{})
		if err != nil {
			t.Fatal(err)
		}
		counts := map[string]int{}
		for _, answer := range answers {
			if answer.Failure != probe.None {
				t.Fatalf("%+v", answer)
			}
			counts[answer.Server]++
		}
		// Each gets 80 of 400 with a deviation of 8: half of it is five
		// deviations away.
		for name := range want {
			if counts[name] < calls/len(want)/2 {
				t.Errorf("%s answered %d of %d calls: %v", name, counts[name], calls, counts)
			}
		}
		for name := range counts {
			if !want[name] {
				t.Errorf("%s answered and is no backend", name)
			}
		}
	})
}
