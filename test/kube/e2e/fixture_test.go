// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/kube/controlplane"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// binaries are built when a test first needs them.
var binaries testbed.Binaries

// buildBinaries fills binaries.
var buildBinaries = sync.OnceValue(func() (err error) {
	binaries, err = testbed.BuildBinaries(binDir)
	return err
})

// binDir is where programs are built that are not built yet.
var binDir string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if binDir, err = os.MkdirTemp("", "millrace-kube-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(binDir)
	return m.Run()
}

// Where the manifests are, and what they call the calculator's account.
const (
	deployDir            = "../../../deploy"
	calculatorNamespace  = "millrace-system"
	calculatorAccount    = "millrace-calculator"
	echoPort             = 8080
	apiServerPort        = 6443
	secondCalculatorPort = testbed.CalculatorPort + 1
)

// fixture is a cluster whose calculator reads from an API server on the
// cluster's control host, with no more rights than deploy/ gives it.
type fixture struct {
	*testbed.Cluster
	plane      *controlplane.ControlPlane
	kubeconfig string
	calculator *testbed.Calculator
	agents     []*testbed.Agent
}

// startPlane brings a cluster up with an API server that has its Nodes and
// Pods, and servers in all of them; nothing of Millrace runs yet.
func startPlane(t *testing.T, options testbed.Options) *fixture {
	t.Helper()
	if err := buildBinaries(); err != nil {
		t.Fatal(err)
	}
	ctx := harness.Limit(t, 90*time.Second)
	cluster, err := testbed.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Cluster: cluster}
	t.Cleanup(func() { f.close(t) })
	f.plane, err = controlplane.Start(ctx, controlplane.Options{
		NetNS: cluster.Control.NetNS, Address: cluster.Control.IPv4, Port: apiServerPort,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.plane.Kubectl(ctx, nil, "apply", "-f", filepath.Join(deployDir, "base", "namespace.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.plane.Kubectl(ctx, nil, "apply", "-k", filepath.Join(deployDir, "base")); err != nil {
		t.Fatal(err)
	}
	f.kubeconfig, err = f.plane.TokenKubeconfig(ctx, "", calculatorNamespace, calculatorAccount)
	if err != nil {
		t.Fatal(err)
	}
	f.apply(ctx, t, f.nodeObjects()...)
	for _, host := range f.servers() {
		prober, err := cluster.Probe(host, binaries)
		if err != nil {
			t.Fatal(err)
		}
		if err := prober.Serve(echoPort); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// start brings a fixture up with agents that dial these calculators; the first
// one runs.
func start(t *testing.T, options testbed.Options, calculators ...string) *fixture {
	t.Helper()
	f := startPlane(t, options)
	ctx := harness.Limit(t, 60*time.Second)
	var err error
	f.calculator, err = f.StartCalculator(testbed.CalculatorOptions{Binaries: binaries, Kubeconfig: f.kubeconfig})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.calculator.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
	f.agents, err = f.StartAgents(ctx, testbed.AgentOptions{Binaries: binaries, Calculators: calculators})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) close(t *testing.T) { harness.Close(t, f.Cluster, f.plane.Stop) }

// nodeObjects are the Nodes and Pods of the cluster.
func (f *fixture) nodeObjects() []runtime.Object {
	var objects []runtime.Object
	for _, node := range f.Nodes {
		objects = append(objects, node.Object())
	}
	for _, pod := range f.Pods() {
		objects = append(objects, pod.Object())
	}
	return objects
}

// servers are the hosts that answer: pods, and nodes for their host network.
func (f *fixture) servers() []*testbed.Host {
	var hosts []*testbed.Host
	for _, node := range f.Nodes {
		hosts = append(hosts, &node.Host)
		for _, pod := range node.Pods {
			hosts = append(hosts, &pod.Host)
		}
	}
	return hosts
}

func (f *fixture) apply(ctx context.Context, t *testing.T, objects ...runtime.Object) {
	t.Helper()
	if err := f.plane.Apply(ctx, objects...); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) delete(ctx context.Context, t *testing.T, objects ...runtime.Object) {
	t.Helper()
	if err := f.plane.Delete(ctx, objects...); err != nil {
		t.Fatal(err)
	}
}

// waitServices waits until every node has the services as they are.
func (f *fixture) waitServices(ctx context.Context, t *testing.T, services ...testbed.Service) {
	t.Helper()
	for _, agent := range f.agents {
		if err := agent.WaitServices(ctx, services...); err != nil {
			t.Fatal(err)
		}
	}
}

// waitNoServices waits until no node has them.
func (f *fixture) waitNoServices(ctx context.Context, t *testing.T, services ...testbed.Service) {
	t.Helper()
	for _, agent := range f.agents {
		for _, service := range services {
			if err := agent.WaitNoService(ctx, service); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// expectAnswers dials the target often enough to reach each of the servers,
// and demands that nobody else answers.
func (f *fixture) expectAnswers(t *testing.T, client *testbed.Host, network string, target netip.AddrPort, servers ...string) {
	t.Helper()
	prober, err := f.Probe(client, binaries)
	if err != nil {
		t.Fatal(err)
	}
	missing := map[string]bool{}
	for _, server := range servers {
		missing[server] = true
	}
	// A server of n is missed 30*n times in a row about once in 10^13 runs.
	for range 30 * len(servers) {
		answer, err := prober.Once(probe.Dial{Network: network, Target: target}, probe.Exchange{})
		if err != nil {
			t.Fatal(err)
		}
		if answer.Failure != probe.None {
			t.Errorf("%s from %s to %s: %s %s", network, client.Name, target, answer.Failure, answer.Detail)
			return
		}
		found := false
		for _, server := range servers {
			found = found || server == answer.Server
		}
		if !found {
			t.Errorf("%s from %s to %s: %s answered; want one of %v", network, client.Name, target, answer.Server, servers)
			return
		}
		if delete(missing, answer.Server); len(missing) == 0 {
			return
		}
	}
	t.Errorf("%s from %s to %s: %v never answered", network, client.Name, target, missing)
}

// newService is a dual-stack service for TCP and UDP on port 80. n gives its
// addresses and, if it has them, node port.
func newService(name string, n int, nodePort bool, endpoints ...testbed.Endpoint) testbed.Service {
	service := testbed.Service{
		Name: name, Endpoints: endpoints,
		ClusterIPs: []netip.Addr{testbed.ServiceIP(4, n), testbed.ServiceIP(6, n)},
	}
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		port := testbed.Port{Name: strings.ToLower(string(protocol)), Protocol: protocol, Port: 80, Target: echoPort}
		if nodePort {
			port.NodePort = uint16(30000 + n)
		}
		service.Ports = append(service.Ports, port)
	}
	return service
}
