// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// path is one way that data takes through the cluster.
type path struct {
	name   string
	prober *testbed.Prober
	target func(family int) netip.AddrPort
}

// paths are the ways through the dataplane that rewrite packets differently.
func paths(t *testing.T, stack *testbed.Stack) []path {
	t.Helper()
	node := stack.Nodes[0]
	pods := stack.Pods()
	near := newService("near", 1, pods[1].Endpoint())
	far := newService("far", 2, pods[2].Endpoint())
	self := newService("self", 3, pods[0].Endpoint())
	onHost := newService("on-host", 4, stack.Nodes[1].Endpoint())
	serve(t, stack, near, far, self, onHost)

	sockets, packets := prober(t, stack, &pods[0].Host, false), prober(t, stack, &pods[0].Host, true)
	host, external := prober(t, stack, &node.Host, false), prober(t, stack, stack.Client, false)
	cluster := func(s testbed.Service) func(int) netip.AddrPort {
		return func(family int) netip.AddrPort { return clusterIP(s, family) }
	}
	port := func(s testbed.Service) func(int) netip.AddrPort {
		return func(family int) netip.AddrPort { return nodePort(s, node, family) }
	}
	return []path{
		{"pod-sockets/same-node", sockets, cluster(near)},
		{"pod-sockets/other-node", sockets, cluster(far)},
		{"pod-packets/same-node", packets, cluster(near)},
		{"pod-packets/other-node", packets, cluster(far)},
		{"pod-packets/other-host", packets, cluster(onHost)},
		{"pod-packets/hairpin", packets, cluster(self)},
		{"host-sockets/same-node", host, cluster(near)},
		{"host-sockets/other-node", host, cluster(far)},
		{"external/same-node", external, port(near)},
		{"external/other-node", external, port(far)},
		{"external/other-host", external, port(onHost)},
	}
}

// at makes a function of a host's addresses with a port.
func at(host *testbed.Host, port uint16) func(family int) netip.AddrPort {
	return func(family int) netip.AddrPort { return netip.AddrPortFrom(host.IP(family), port) }
}

// transfer moves data there and back on every path and compares checksums.
func transfer(t *testing.T, paths []path, tcpSize int, udpSizes ...int) {
	for _, path := range paths {
		for _, family := range families {
			t.Run(fmt.Sprintf("%s/tcp/v%d", path.name, family), func(t *testing.T) {
				dial := probe.Dial{Network: probe.TCP, Target: path.target(family), Timeout: 10 * time.Second}
				answer, err := path.prober.Once(dial, probe.Exchange{Size: tcpSize, ReplySize: tcpSize})
				if err != nil {
					t.Fatal(err)
				}
				if answer.Failure != probe.None {
					t.Fatalf("%s: %+v", dial.Target, answer)
				}
				if seconds := answer.Took.Seconds(); seconds > 0 {
					t.Logf("%.0f MiB/s", 2*float64(tcpSize)/(1<<20)/seconds)
				}
			})
			for _, size := range udpSizes {
				t.Run(fmt.Sprintf("%s/udp-%d/v%d", path.name, size, family), func(t *testing.T) {
					dial := probe.Dial{Network: probe.UDP, Target: path.target(family), Timeout: time.Second}
					p := path.prober
					opened := open(t, p, dial)
					// A first datagram beyond a narrow link is lost, and tells
					// the sender the width: that is how path MTU discovery
					// works.
					var answer probe.Answer
					for range 4 {
						answer = exchange(t, p, probe.Exchange{Session: opened.Session, Size: size, ReplySize: size})
						if answer.Failure != probe.Timeout && answer.Failure != probe.TooBig {
							break
						}
					}
					if answer.Failure != probe.None || answer.From != dial.Target {
						t.Fatalf("%s: %+v", dial.Target, answer)
					}
				})
			}
		}
	}
}

// TestTransfers moves 16 MiB on every path with the offloads that devices
// have by default, and datagrams with and without fragments.
func TestTransfers(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	transfer(t, paths(t, stack), 16<<20, 1000, 4000, 60000)
}

// TestWithoutFastPath does it with every packet passing the host's stack.
func TestWithoutFastPath(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2, AgentArgs: []string{"--fast-path=false"}})
	transfer(t, paths(t, stack), 4<<20, 1000, 4000)
}

// TestJumboFrames does it with 9000 byte packets.
func TestJumboFrames(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2, MTU: 9000})
	transfer(t, paths(t, stack), 4<<20, 4000, 20000)
}

// TestNarrowLink does it with links of 1300 bytes in the middle of the path,
// of which the ends learn by ICMP errors alone: before the backend's pod, and
// on the way back to the client.
func TestNarrowLink(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	const width = 1300
	narrow := func(host *testbed.Host, to *testbed.Host) {
		t.Helper()
		for _, family := range families {
			if err := host.SetRouteMTU(netip.PrefixFrom(to.IP(family), to.IP(family).BitLen()), width); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, node := range stack.Nodes {
		for _, pod := range node.Pods {
			narrow(&node.Host, &pod.Host)
		}
	}
	node := stack.Nodes[0]
	for _, family := range families {
		client := stack.Client.IP(family)
		if err := node.AddRoute(netip.PrefixFrom(client, client.BitLen()), client); err != nil {
			t.Fatal(err)
		}
	}
	narrow(&node.Host, stack.Client)
	transfer(t, paths(t, stack), 1<<20, 1000, 4000)
}
