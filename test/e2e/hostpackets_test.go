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

// TestHostPackets calls services from processes of the node itself that no
// socket program sees: packets to a service's address that leave by an uplink
// are sent to a backend. (What a node sends to its own node ports, or to a
// service whose backend is the node, stays on loopback, where there are no
// programs: that is for sockets alone.)
func TestHostPackets(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	node, pods := stack.Nodes[0], stack.Pods()
	p := prober(t, stack, &node.Host, true)
	services := []testbed.Service{
		newService("same-node", 1, pods[1].Endpoint()),
		newService("other-node", 2, pods[2].Endpoint()),
		newService("other-host", 3, stack.Nodes[1].Endpoint()),
	}
	servers := []string{pods[1].Name, pods[2].Name, stack.Nodes[1].Name}
	empty := newService("empty", 4)
	serve(t, stack, append(services, empty)...)
	for n, service := range services {
		for _, network := range networks {
			for _, family := range families {
				for name, target := range map[string]netip.AddrPort{
					"cluster-ip":    clusterIP(service, family),
					"external-ip":   netip.AddrPortFrom(service.ExternalIPs[family/6], 80),
					"load-balancer": netip.AddrPortFrom(service.LoadBalancerIPs[family/6], 80),
				} {
					t.Run(fmt.Sprintf("%s/%s/%s/v%d", service.Name, name, network, family), func(t *testing.T) {
						dial := probe.Dial{Network: network, Target: target}
						opened := open(t, p, dial)
						for range 3 {
							answer := exchange(t, p, probe.Exchange{Session: opened.Session, Size: 5000, ReplySize: 5000})
							if answer.Failure != probe.None || answer.Server != servers[n] || answer.From != target ||
								answer.Client.Addr() != node.IP(family) {
								t.Errorf("got %+v, want %s to see %s", answer, servers[n], node.IP(family))
							}
						}
					})
				}
			}
		}
	}
	for _, network := range networks {
		for _, family := range families {
			t.Run(fmt.Sprintf("no-backend/%s/v%d", network, family), func(t *testing.T) {
				answer := ask(t, p, probe.Dial{Network: network, Target: clusterIP(empty, family)})
				if answer.Failure != probe.Refused || answer.Took > 700*time.Millisecond {
					t.Errorf("got %+v, want a refusal at once", answer)
				}
			})
		}
	}
}
