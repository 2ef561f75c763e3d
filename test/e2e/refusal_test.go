// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestNoBackend calls services without backends: the refusal comes at once,
// not when a timer of the client runs out.
func TestNoBackend(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	service := newService("empty", 1)
	serve(t, stack, service)
	node := stack.Nodes[0]
	// A SYN is sent again after a second, so anything below proves that the
	// first packet was answered.
	const atOnce = 700 * time.Millisecond
	refused := func(t *testing.T, p *testbed.Prober, network string, target netip.AddrPort) {
		t.Helper()
		answer := ask(t, p, probe.Dial{Network: network, Target: target})
		if answer.Failure != probe.Refused || answer.Took > atOnce {
			t.Errorf("%s: got %q after %v (%s), want a refusal at once", target, answer.Failure, answer.Took, answer.Detail)
		}
	}
	each(t, func(t *testing.T, bypass bool, network string, family int) {
		t.Run("pod", func(t *testing.T) {
			p := prober(t, stack, &node.Pods[0].Host, bypass)
			refused(t, p, network, clusterIP(service, family))
			refused(t, p, network, nodePort(service, node, family))
			refused(t, p, network, nodePort(service, stack.Nodes[1], family))
		})
		if !bypass {
			t.Run("host", func(t *testing.T) {
				p := prober(t, stack, &node.Host, false)
				refused(t, p, network, clusterIP(service, family))
				refused(t, p, network, nodePort(service, node, family))
			})
			t.Run("external", func(t *testing.T) {
				p := prober(t, stack, stack.Client, false)
				refused(t, p, network, nodePort(service, node, family))
				refused(t, p, network, netip.AddrPortFrom(service.ExternalIPs[family/6], 80))
				refused(t, p, network, netip.AddrPortFrom(service.LoadBalancerIPs[family/6], 80))
			})
		}
	})
}

// TestDeletedService calls a service before and after it is deleted.
func TestDeletedService(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	kept := newService("kept", 1, stack.Pods()[1].Endpoint())
	deleted := newService("deleted", 2, stack.Pods()[2].Endpoint())
	serve(t, stack, kept, deleted)
	check := func(service testbed.Service, works bool) {
		t.Helper()
		for _, way := range ways {
			var dials []probe.Dial
			for _, network := range networks {
				for _, family := range families {
					for _, target := range []netip.AddrPort{clusterIP(service, family), nodePort(service, stack.Nodes[0], family)} {
						dial := probe.Dial{Network: network, Target: target}
						if !works {
							dial.Timeout = quick
						}
						dials = append(dials, dial)
					}
				}
			}
			for i, answer := range askAll(t, prober(t, stack, &stack.Pods()[0].Host, way.bypass), dials) {
				if (answer.Failure == probe.None) != works {
					t.Errorf("%s %s %s works: %t; want %t: %+v", way.name, dials[i].Network, dials[i].Target, !works, works, answer)
				}
			}
		}
	}
	check(kept, true)
	check(deleted, true)
	unserve(t, stack, deleted)
	check(kept, true)
	check(deleted, false)
	serve(t, stack, deleted)
	check(deleted, true)
}
