// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/kube/controlplane"
	"github.com/millrace-project/millrace/test/testbed"
)

var binaries testbed.Binaries

func TestMain(m *testing.M) { os.Exit(harness.Main(m, &binaries)) }

// The size that the figures are for.
const (
	services           = 10_000
	backendsPerService = 5
)

const echoPort = 8080

// How long calculators take to stop: shorter than by default, for the tests'
// sake.
const (
	drainTime  = 2 * time.Second
	drainGrace = time.Second
)

// fixture is a cluster with two calculators on one API server. The first
// agent reaches each calculator by a proxy, the second one directly.
type fixture struct {
	*testbed.Cluster
	plane       *controlplane.ControlPlane
	certs       *certificates
	kubeconfig  string
	calculators [2]*calculator
	agents      []*testbed.Agent
	settled     int
}

// calculator is one of the two.
type calculator struct {
	calculatorv1.CalculatorServiceClient
	f       *fixture
	number  int
	process *testbed.Process
	proxy   *proxy
	// addresses is where each agent reaches it.
	addresses [2]string
}

func startFixture(t *testing.T) *fixture {
	t.Helper()
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	cluster, err := testbed.Start(testbed.Options{Nodes: 2, PodsPerNode: 1})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Cluster: cluster}
	t.Cleanup(func() { f.close(t) })
	ctx := harness.Limit(t, 5*time.Minute)
	f.plane, err = controlplane.Start(ctx, controlplane.Options{NetNS: f.Control.NetNS, Address: f.Control.IPv4, Port: 6443})
	if err != nil {
		t.Fatal(err)
	}
	if f.kubeconfig, err = f.plane.Kubeconfig("", "calculator", "system:masters"); err != nil {
		t.Fatal(err)
	}
	if err := f.plane.Preload(ctx, bulk()...); err != nil {
		t.Fatal(err)
	}
	f.certs = makeCertificates(t, f.Control.IPv4.AsSlice())
	f.apply(ctx, t, f.nodeObjects()...)
	for i := range f.calculators {
		c := &calculator{f: f, number: i + 1}
		c.addresses = [2]string{netip.AddrPortFrom(f.Control.IPv4, uint16(7711+i)).String(),
			netip.AddrPortFrom(f.Control.IPv4, uint16(c.port())).String()}
		conn, err := grpc.NewClient("unix://"+c.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		c.CalculatorServiceClient = calculatorv1.NewCalculatorServiceClient(conn)
		f.calculators[i] = c
		c.start(t)
		c.proxy = startProxy(t, f.Control, c.addresses[0], fmt.Sprintf("127.0.0.1:%d", c.port()))
	}
	for _, c := range f.calculators {
		c.waitSynced(ctx, t)
	}
	for i, node := range f.Nodes {
		options := testbed.AgentOptions{Binaries: binaries, Args: f.agentArgs(t, node)}
		for _, c := range f.calculators {
			options.Calculators = append(options.Calculators, c.addresses[i])
		}
		agent, err := f.StartAgent(node, options)
		if err != nil {
			t.Fatal(err)
		}
		f.agents = append(f.agents, agent)
	}
	f.waitInSync(ctx, t)
	f.settle(ctx, t)
	for _, host := range f.Hosts() {
		prober, err := f.Probe(host, binaries)
		if err == nil {
			err = prober.Serve(echoPort)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *fixture) waitInSync(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, agent := range f.agents {
		if err := agent.WaitInSync(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func (f *fixture) agentArgs(t *testing.T, node *testbed.Node) []string {
	t.Helper()
	cert, key := f.certs.files(t, node.Name)
	return []string{"--tls-ca", f.certs.ca, "--tls-cert", cert, "--tls-key", key, "--max-backends", "131072"}
}

func (f *fixture) close(t *testing.T) { harness.Close(t, f.Cluster, f.plane.Stop) }

// bulk is the cluster's many services, with endpoints that are no pods of it.
func bulk() []runtime.Object {
	var objects []runtime.Object
	for i := range services {
		objects = append(objects, bulkService(i, 0).Objects()...)
	}
	return objects
}

// bulkService is one of them; generation makes its last endpoint another one.
func bulkService(i, generation int) testbed.Service {
	s := testbed.Service{
		Namespace: "bulk", Name: fmt.Sprintf("service-%05d", i), ClusterIPs: []netip.Addr{testbed.ServiceIP(4, 1000+i)},
		Ports: []testbed.Port{{Port: 80, Target: echoPort}},
	}
	for k := range backendsPerService {
		n := i*backendsPerService + k
		addr := netip.AddrFrom4([4]byte{10, 200 + byte(n>>16), byte(n >> 8), byte(n)})
		if k == backendsPerService-1 && generation > 0 {
			addr = netip.AddrFrom4([4]byte{10, 210 + byte(generation), byte(i >> 8), byte(i)})
		}
		s.Endpoints = append(s.Endpoints, testbed.Endpoint{IPv4: addr, NodeName: "node-1"})
	}
	return s
}

// small is a service of both families whose endpoints are pods that answer.
func small(name string, n int, endpoints ...testbed.Endpoint) testbed.Service {
	return testbed.Service{
		Name: name, ClusterIPs: []netip.Addr{testbed.ServiceIP(4, n), testbed.ServiceIP(6, n)}, Endpoints: endpoints,
		Ports: []testbed.Port{{Protocol: corev1.ProtocolTCP, Port: 80, Target: echoPort}},
	}
}

func (f *fixture) nodeObjects() []runtime.Object {
	objects := []runtime.Object{&corev1.Namespace{ObjectMeta: metaName("bulk")}}
	for _, node := range f.Nodes {
		objects = append(objects, node.Object())
	}
	for _, pod := range f.Pods() {
		objects = append(objects, pod.Object())
	}
	return objects
}

func (f *fixture) apply(ctx context.Context, t *testing.T, objects ...runtime.Object) {
	t.Helper()
	if err := f.plane.Apply(ctx, objects...); err != nil {
		t.Fatal(err)
	}
}

func (c *calculator) port() int        { return 7700 + c.number }
func (c *calculator) metricsPort() int { return 9720 + c.number }
func (c *calculator) socket() string {
	return filepath.Join(c.f.Dir, fmt.Sprintf("calculator-%d.sock", c.number))
}

// start starts the process.
func (c *calculator) start(t *testing.T) {
	t.Helper()
	if err := c.tryStart(); err != nil {
		t.Fatal(err)
	}
}

func (c *calculator) tryStart() (err error) {
	c.process, err = c.f.Control.Start(fmt.Sprintf("calculator-%d", c.number), binaries.Calculator,
		"--source", "kube", "--kubeconfig", c.f.kubeconfig, "--listen", fmt.Sprintf("0.0.0.0:%d", c.port()),
		"--socket", c.socket(), "--metrics-listen", fmt.Sprintf("127.0.0.1:%d", c.metricsPort()),
		"--tls-cert", c.f.certs.cert, "--tls-key", c.f.certs.key, "--tls-client-ca", c.f.certs.ca,
		"--drain-time", drainTime.String(), "--drain-grace", drainGrace.String())
	return err
}

func (c *calculator) waitSynced(ctx context.Context, t *testing.T) {
	t.Helper()
	err := testbed.Eventually(ctx, func() error {
		if err := c.process.Running(); err != nil {
			return err
		}
		status, code, err := get(ctx, c.f.Control, fmt.Sprintf("http://127.0.0.1:%d/readyz", c.metricsPort()))
		if err == nil && code != http.StatusOK {
			err = errors.New(status)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// get asks by HTTP on a host, without looking at certificates.
func get(ctx context.Context, host *testbed.Host, url string) (body string, code int, err error) {
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: noVerification(), DialContext: host.DialContext}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", 0, err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return "", 0, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(text)), response.StatusCode, err
}

// metric is the sum of a metric's series.
func (c *calculator) metric(ctx context.Context, t *testing.T, name string) float64 {
	t.Helper()
	body, _, err := get(ctx, c.f.Control, fmt.Sprintf("http://127.0.0.1:%d/metrics", c.metricsPort()))
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum, found = sum+value, true
	}
	if !found {
		t.Fatalf("there is no metric %s", name)
	}
	return sum
}

// stream is how an agent's connection is.
func stream(ctx context.Context, t *testing.T, a *testbed.Agent) *agentv1.CalculatorConnection {
	t.Helper()
	status, err := a.GetStatus(ctx, &agentv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return status.GetCalculator()
}

// waitAt waits until the agent is in sync with this calculator, which knows
// that it is.
func (c *calculator) waitAt(ctx context.Context, t *testing.T, a *testbed.Agent) {
	t.Helper()
	err := testbed.Eventually(ctx, func() error {
		status, err := a.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		s := status.GetCalculator()
		if !s.GetInSync() || !slices.Contains(c.addresses[:], s.GetAddress()) || s.GetProgrammedRevision() < s.GetReceivedRevision() {
			return fmt.Errorf("%s is not in sync with calculator %d: %v", a.Node.Name, c.number, s)
		}
		nodes, err := c.ListNodes(ctx, &calculatorv1.ListNodesRequest{})
		if err != nil {
			return err
		}
		for _, n := range nodes.GetNodes() {
			if n.GetName() == a.Node.Name && (!n.GetConnected() || n.GetLag() > 0 || n.GetAck() == nil) {
				return fmt.Errorf("the calculator does not know it: %v", n)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
