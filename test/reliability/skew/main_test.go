// SPDX-License-Identifier: Apache-2.0

package skew

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// Binaries of the present and of the previous release.
var (
	present, previous testbed.Binaries
	release           Release
	// noPrevious is why there are no programs of the previous release.
	noPrevious error
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "millrace-skew-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if present, err = testbed.BuildBinaries(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if release, err = Previous(); err == nil {
		previous, err = release.Build(present)
	}
	if noPrevious = err; err != nil && !errors.Is(err, ErrNoHistory) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// needPrevious skips where the previous release's programs cannot be had.
func needPrevious(t *testing.T) {
	t.Helper()
	if noPrevious != nil {
		t.Skip(noPrevious)
	}
}

// echoPort is where the echo servers of pods and nodes listen.
const echoPort = 8080

// startCluster starts a cluster with echo servers, and nothing of Millrace.
func startCluster(t *testing.T, options testbed.Options) *testbed.Stack {
	t.Helper()
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	cluster, err := testbed.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	stack := &testbed.Stack{Cluster: cluster, Binaries: present}
	t.Cleanup(func() {
		if t.Failed() {
			harness.Logs(t, stack)
		}
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := stack.ApplyNodes(); err != nil {
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

// useCalculator ends the running calculator, if there is one, and starts one of
// these binaries in its place.
func useCalculator(t *testing.T, stack *testbed.Stack, binaries testbed.Binaries) {
	t.Helper()
	if stack.Calculator != nil {
		if err := stack.Calculator.Process.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if stack.Calculator, err = stack.StartCalculator(testbed.CalculatorOptions{Binaries: binaries}); err != nil {
		t.Fatal(err)
	}
	if err := stack.Calculator.WaitSynced(harness.Limit(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// useAgent ends a node's agent, if there is one, and starts one of these
// binaries in its place. It does not wait until it is in sync.
func useAgent(t *testing.T, stack *testbed.Stack, node int, options testbed.AgentOptions) *testbed.Agent {
	t.Helper()
	if node < len(stack.Agents) {
		if err := stack.Agents[node].Process.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	agent, err := stack.StartAgent(stack.Nodes[node], options)
	if node < len(stack.Agents) {
		stack.Agents[node] = agent
	} else {
		stack.Agents = append(stack.Agents, agent)
	}
	if err != nil {
		t.Fatal(err)
	}
	return agent
}

// newService is a dual-stack service for TCP and UDP on port 80. n tells its
// addresses and node port.
func newService(name string, n int, endpoints ...testbed.Endpoint) testbed.Service {
	service := testbed.Service{Name: name, Endpoints: endpoints}
	for _, family := range []int{4, 6} {
		service.ClusterIPs = append(service.ClusterIPs, testbed.ServiceIP(family, n))
		service.ExternalIPs = append(service.ExternalIPs, testbed.ExternalIP(family, n))
	}
	for name, protocol := range map[string]corev1.Protocol{"tcp": corev1.ProtocolTCP, "udp": corev1.ProtocolUDP} {
		service.Ports = append(service.Ports, testbed.Port{
			Name: name, Protocol: protocol, Port: 80, Target: echoPort, NodePort: uint16(30000 + n),
		})
	}
	return service
}

// clusterIP is the address and port of a service's cluster IP.
func clusterIP(service testbed.Service, family int) netip.AddrPort {
	return netip.AddrPortFrom(service.ClusterIPs[family/6], 80)
}
