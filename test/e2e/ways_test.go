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

// TestPortChangesWays reaches one backend from one client port, one socket
// after another, in every way: by its service, translated at the socket or on
// packets, and directly. What is remembered of the flow before does not touch
// the one after.
func TestPortChangesWays(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	clients := []*testbed.Host{&stack.Pods()[0].Host, &stack.Nodes[0].Host}
	backends := map[string]testbed.Endpoint{"near": stack.Pods()[1].Endpoint(), "far": stack.Pods()[2].Endpoint()}
	number := 0
	for name, backend := range backends {
		number++
		service := newService(name, number, backend)
		serve(t, stack, service)
		for _, network := range networks {
			for _, family := range families {
				direct := netip.AddrPortFrom(backend.IPv4, echoPort)
				if family == 6 {
					direct = netip.AddrPortFrom(backend.IPv6, echoPort)
				}
				steps := []struct {
					name   string
					bypass bool
					target netip.AddrPort
				}{
					{"sockets", false, clusterIP(service, family)},
					{"packets", true, clusterIP(service, family)},
					{"direct", true, direct},
				}
				port := uint16(41000 + number)
				for _, client := range clients {
					for _, before := range steps {
						for _, after := range steps {
							port += 10
							t.Run(fmt.Sprintf("%s/%s/%s/v%d/%s then %s", client.Name, name, network, family, before.name, after.name), func(t *testing.T) {
								for i, step := range []struct {
									bypass bool
									target netip.AddrPort
								}{{before.bypass, before.target}, {after.bypass, after.target}} {
									dial := probe.Dial{Network: network, Target: step.target, Abort: network == probe.TCP,
										Bind: netip.AddrPortFrom(netip.IPv4Unspecified(), port), Timeout: 2 * time.Second}
									answer := ask(t, prober(t, stack, client, step.bypass), dial)
									if answer.Failure != probe.None || answer.From != step.target || answer.Took > 700*time.Millisecond {
										t.Errorf("call %d: %+v", i+1, answer)
									}
								}
							})
						}
					}
				}
			}
		}
	}
}
