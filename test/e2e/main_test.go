// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// binaries are built once for all tests.
var binaries testbed.Binaries

func TestMain(m *testing.M) { os.Exit(harness.Main(m, &binaries)) }

// quick is how long to wait for an answer that should not come.
const quick = 200 * time.Millisecond

// echoPort is where the echo servers of the tests listen.
const echoPort = 8080

// startStack starts a cluster with Millrace and echo servers on all pods and
// nodes.
func startStack(t *testing.T, options testbed.Options) *testbed.Stack {
	t.Helper()
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	stack, err := testbed.StartStack(harness.Limit(t, 60*time.Second), options, binaries)
	if stack != nil {
		t.Cleanup(func() {
			if t.Failed() {
				harness.Logs(t, stack)
			}
			if err := stack.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range stack.Nodes {
		hosts := []*testbed.Host{&node.Host}
		for _, pod := range node.Pods {
			hosts = append(hosts, &pod.Host)
		}
		if err := stack.ServeEcho(echoPort, hosts...); err != nil {
			t.Fatal(err)
		}
	}
	return stack
}

// serve programs services on all nodes.
func serve(t *testing.T, stack *testbed.Stack, services ...testbed.Service) {
	t.Helper()
	if err := stack.Serve(harness.Limit(t, 20*time.Second), services...); err != nil {
		t.Fatal(err)
	}
}

// unserve removes services from all nodes.
func unserve(t *testing.T, stack *testbed.Stack, services ...testbed.Service) {
	t.Helper()
	if err := stack.Unserve(harness.Limit(t, 20*time.Second), services...); err != nil {
		t.Fatal(err)
	}
}

// newService is a dual-stack service for TCP and UDP on port 80. n tells its
// addresses and node port.
func newService(name string, n int, endpoints ...testbed.Endpoint) testbed.Service {
	service := testbed.Service{Name: name, Endpoints: endpoints}
	for _, family := range families {
		service.ClusterIPs = append(service.ClusterIPs, testbed.ServiceIP(family, n))
		service.ExternalIPs = append(service.ExternalIPs, testbed.ExternalIP(family, n))
		service.LoadBalancerIPs = append(service.LoadBalancerIPs, testbed.ExternalIP(family, 100+n))
	}
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		service.Ports = append(service.Ports, testbed.Port{
			Name:     "echo-" + strings.ToLower(string(protocol)),
			Protocol: protocol, Port: 80, Target: echoPort, NodePort: uint16(30000 + n),
		})
	}
	return service
}

var (
	families = []int{4, 6}
	networks = []string{probe.TCP, probe.UDP}
)

// clusterIP is the address and port of a service's cluster IP.
func clusterIP(service testbed.Service, family int) netip.AddrPort {
	for _, addr := range service.ClusterIPs {
		if addr.Is6() == (family == 6) {
			return netip.AddrPortFrom(addr, 80)
		}
	}
	return netip.AddrPort{}
}

// nodePort is the address and port of a service's node port on a node.
func nodePort(service testbed.Service, node *testbed.Node, family int) netip.AddrPort {
	return netip.AddrPortFrom(node.IP(family), service.Ports[0].NodePort)
}

// prober is a host's prober, seen by socket programs or not.
func prober(t *testing.T, stack *testbed.Stack, host *testbed.Host, bypass bool) *testbed.Prober {
	t.Helper()
	get := stack.Probe
	if bypass {
		get = stack.ProbeBypass
	}
	p, err := get(host)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ask makes one exchange on a socket of its own; failures of the network are
// in the answer.
func ask(t *testing.T, p *testbed.Prober, dial probe.Dial) probe.Answer {
	t.Helper()
	answer, err := p.Once(dial, probe.Exchange{})
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// ways are the two ways to a service from a namespace of a node.
var ways = []struct {
	name   string
	bypass bool
}{{"sockets", false}, {"packets", true}}

// each runs a test for each way, network and family.
func each(t *testing.T, test func(t *testing.T, bypass bool, network string, family int)) {
	for _, way := range ways {
		for _, network := range networks {
			for _, family := range families {
				t.Run(fmt.Sprintf("%s/%s/v%d", way.name, network, family), func(t *testing.T) {
					test(t, way.bypass, network, family)
				})
			}
		}
	}
}

// askAll is ask for many, side by side, so that those that wait in vain do it
// at the same time. The answers are in the order of the dials.
func askAll(t *testing.T, p *testbed.Prober, dials []probe.Dial) []probe.Answer {
	t.Helper()
	answers := make([]probe.Answer, len(dials))
	failures := make([]error, len(dials))
	var group sync.WaitGroup
	for i, dial := range dials {
		group.Go(func() { answers[i], failures[i] = p.Once(dial, probe.Exchange{}) })
	}
	group.Wait()
	if err := errors.Join(failures...); err != nil {
		t.Fatal(err)
	}
	return answers
}
