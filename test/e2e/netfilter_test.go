// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestHostNetfilter proves that translation by the node's own netfilter, as
// CNI plugins set it up, works beside services: masquerading of what leaves
// the cluster, and host ports.
func TestHostNetfilter(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2, Masquerade: true})
	pods := stack.Pods()
	node := stack.Nodes[0]
	if err := stack.ServeEcho(echoPort, stack.Client); err != nil {
		t.Fatal(err)
	}
	for _, protocol := range networks {
		if err := node.HostPort(protocol, 9080, pods[1], echoPort); err != nil {
			t.Fatal(err)
		}
	}
	outside := testbed.Endpoint{IPv4: stack.Client.IPv4, IPv6: stack.Client.IPv6}
	service := newService("outside", 1, outside)
	plain := newService("inside", 2, pods[2].Endpoint())
	serve(t, stack, service, plain)

	each(t, func(t *testing.T, bypass bool, network string, family int) {
		pod := prober(t, stack, &pods[0].Host, bypass)
		expect := func(name string, p *testbed.Prober, target netip.AddrPort, server string, source netip.Addr) {
			t.Helper()
			for range 2 {
				opened := open(t, p, probe.Dial{Network: network, Target: target})
				for range 3 {
					answer := exchange(t, p, probe.Exchange{Session: opened.Session})
					if answer.Failure != probe.None || answer.Server != server || answer.From != target || answer.Client.Addr() != source {
						t.Errorf("%s: got %+v, want %s to see %s", name, answer, server, source)
					}
				}
			}
		}
		client := stack.Client.IP(family)
		expect("pod to outside is masqueraded", pod,
			netip.AddrPortFrom(client, echoPort), stack.Client.Name, node.IP(family))
		expect("pod to a service with a backend outside is masqueraded", pod,
			clusterIP(service, family), stack.Client.Name, node.IP(family))
		expect("pod to a service inside keeps its address", pod,
			clusterIP(plain, family), pods[2].Name, pods[0].IP(family))
		expect("pod to another node's host port", prober(t, stack, &pods[2].Host, bypass),
			netip.AddrPortFrom(node.IP(family), 9080), pods[1].Name, stack.Nodes[1].IP(family))
		if !bypass {
			external := prober(t, stack, stack.Client, false)
			expect("client to host port", external,
				netip.AddrPortFrom(node.IP(family), 9080), pods[1].Name, client)
			expect("client to node port", external,
				nodePort(plain, node, family), pods[2].Name, node.IP(family))
		}
	})
}

// TestNetfilterSeesOneFlow proves that a firewall on the node that accepts
// what it knows and drops what is invalid does not stand in the way: both
// directions of a translated flow look to netfilter like one.
func TestNetfilterSeesOneFlow(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2, Masquerade: true})
	for _, node := range stack.Nodes {
		err := node.Nft(`
table inet strict {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state invalid drop
		ct state established,related accept
		ct state new accept
	}
	chain input {
		type filter hook input priority filter; policy drop;
		iif lo accept
		meta l4proto ipv6-icmp accept
		ct state invalid drop
		ct state established,related accept
		ct state new accept
	}
}`)
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range paths(t, stack) {
		for _, network := range networks {
			for _, family := range families {
				t.Run(fmt.Sprintf("%s/%s/v%d", path.name, network, family), func(t *testing.T) {
					target := path.target(family)
					opened := open(t, path.prober, probe.Dial{Network: network, Target: target})
					for range 5 {
						answer := exchange(t, path.prober, probe.Exchange{Session: opened.Session, Size: 1000, ReplySize: 1000})
						if answer.Failure != probe.None || answer.From != target {
							t.Fatalf("got %+v", answer)
						}
					}
				})
			}
		}
	}
}
