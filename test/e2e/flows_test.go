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

// TestManyFlows holds many connections to one backend open at a time, on
// every path: none is mistaken for another.
func TestManyFlows(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	const count = 200
	for _, path := range paths(t, stack) {
		for _, network := range networks {
			for _, family := range families {
				t.Run(fmt.Sprintf("%s/%s/v%d", path.name, network, family), func(t *testing.T) {
					sessions := make([]probe.Opened, count)
					for i := range sessions {
						sessions[i] = open(t, path.prober, probe.Dial{Network: network, Target: path.target(family), Timeout: 10 * time.Second})
					}
					sources := map[netip.AddrPort]bool{}
					for range 2 {
						answers := make([]probe.Answer, count)
						failures := make([]error, count)
						var group sync.WaitGroup
						for i, session := range sessions {
							group.Go(func() {
								answers[i], failures[i] = path.prober.Exchange(probe.Exchange{Session: session.Session, Size: 100 + i})
							})
						}
						group.Wait()
						for i, answer := range answers {
							if failures[i] != nil {
								t.Fatal(failures[i])
							}
							if answer.Failure != probe.None || answer.From != path.target(family) {
								t.Fatalf("flow %d: %+v", i, answer)
							}
							sources[answer.Client] = true
						}
					}
					if len(sources) != count {
						t.Errorf("%d flows reach the backend from %d sources", count, len(sources))
					}
				})
			}
		}
	}
}

// TestPortReuse connects again and again from the same port, after the last
// connection was closed in order and after it was broken off.
func TestPortReuse(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	for n, path := range paths(t, stack) {
		for _, network := range networks {
			for _, family := range families {
				t.Run(fmt.Sprintf("%s/%s/v%d", path.name, network, family), func(t *testing.T) {
					dial := probe.Dial{
						Network: network, Target: path.target(family), Abort: network == probe.TCP,
						Bind: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(40000+n)),
					}
					for i := range 10 {
						answer := ask(t, path.prober, dial)
						if answer.Failure != probe.None || answer.From != dial.Target || answer.Took > 700*time.Millisecond {
							t.Fatalf("call %d: %+v", i, answer)
						}
					}
				})
			}
		}
	}
}

// TestClosedPort calls services whose backend does not listen: its refusal
// comes back as the service's, by RST and by ICMP.
func TestClosedPort(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	all := paths(t, stack)
	for _, service := range []testbed.Service{
		newService("near", 1, stack.Pods()[1].Endpoint()),
		newService("far", 2, stack.Pods()[2].Endpoint()),
		newService("self", 3, stack.Pods()[0].Endpoint()),
		newService("on-host", 4, stack.Nodes[1].Endpoint()),
	} {
		for i := range service.Ports {
			service.Ports[i].Target = 9
		}
		serve(t, stack, service)
	}
	for _, path := range all {
		for _, network := range networks {
			for _, family := range families {
				t.Run(fmt.Sprintf("%s/%s/v%d", path.name, network, family), func(t *testing.T) {
					answer := ask(t, path.prober, probe.Dial{Network: network, Target: path.target(family)})
					if answer.Failure != probe.Refused || answer.Took > 700*time.Millisecond {
						t.Errorf("got %+v, want a refusal at once", answer)
					}
				})
			}
		}
	}
}
