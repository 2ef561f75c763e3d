// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestTwoCalculators runs two calculators on one API server and takes away the
// one that agents are connected to: the other one has the same content, so
// that it sends nothing anew, and what changes arrives through it.
func TestTwoCalculators(t *testing.T) {
	options := testbed.Options{Nodes: 2, PodsPerNode: 2}
	// The address plan is the same in all clusters.
	f := startTwo(t, options)
	ctx := harness.Limit(t, 90*time.Second)
	near, far := f.Nodes[0].Pods[1], f.Nodes[1].Pods[0]
	service := newService("kept", 20, true, near.Endpoint(), far.Endpoint())
	f.apply(ctx, t, service.Objects()...)
	f.waitServices(ctx, t, service)
	baseline := contents(ctx, t, f.agents[0])

	lost, other := f.first, f.second
	if stream := f.stream(ctx, t, f.agents[0]); stream.GetAddress() == other.address {
		lost, other = other, lost
	}
	if err := other.waitSynced(ctx, f.fixture); err != nil {
		t.Fatal(err)
	}
	before := other.resourcesSent(ctx, t, f.fixture)
	if err := lost.process.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, agent := range f.agents {
		if err := f.waitConnected(ctx, agent, other.address); err != nil {
			t.Fatal(err)
		}
	}
	if after := other.resourcesSent(ctx, t, f.fixture); after != before {
		t.Errorf("agents that moved were sent %v resources anew; want none", after-before)
	}
	waitBaseline(ctx, t, f.agents[0], baseline)

	service.Endpoints = service.Endpoints[:1]
	f.apply(ctx, t, service.Objects()...)
	f.waitServices(ctx, t, service)
	if after := other.resourcesSent(ctx, t, f.fixture); after == before {
		t.Error("the metric did not see the resources of a change; the test above proves nothing")
	}
}

// twoCalculators is a fixture with a second calculator.
type twoCalculators struct {
	*fixture
	first, second calculator
}

// calculator is one of several.
type calculator struct {
	process     *testbed.Process
	address     string
	metricsPort int
}

func startTwo(t *testing.T, options testbed.Options) *twoCalculators {
	t.Helper()
	control := netip.MustParseAddr("172.30.0.2")
	addresses := []string{
		netip.AddrPortFrom(control, testbed.CalculatorPort).String(),
		netip.AddrPortFrom(control, secondCalculatorPort).String(),
	}
	f := start(t, options, addresses...)
	if f.Control.IPv4 != control {
		t.Fatalf("the control host is %s; want %s", f.Control.IPv4, control)
	}
	const metricsPort = testbed.MetricsPort + 1
	process, err := f.Control.Start("calculator-2", binaries.Calculator,
		"--source", "kube", "--kubeconfig", f.kubeconfig,
		"--listen", fmt.Sprintf("0.0.0.0:%d", secondCalculatorPort),
		"--socket", filepath.Join(f.Dir, "calculator-2.sock"),
		"--metrics-listen", fmt.Sprintf("127.0.0.1:%d", metricsPort),
		"--insecure")
	if err != nil {
		t.Fatal(err)
	}
	return &twoCalculators{
		fixture: f,
		first:   calculator{f.calculator.Process, addresses[0], testbed.MetricsPort},
		second:  calculator{process, addresses[1], metricsPort},
	}
}

// stream is an agent's connection to a calculator.
func (f *fixture) stream(ctx context.Context, t *testing.T, agent *testbed.Agent) *agentv1.CalculatorConnection {
	t.Helper()
	status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return status.GetCalculator()
}

// waitConnected waits until the agent is in sync with the calculator of that
// address.
func (f *fixture) waitConnected(ctx context.Context, agent *testbed.Agent, address string) error {
	return testbed.Eventually(ctx, func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if stream := status.GetCalculator(); !stream.GetConnected() || !stream.GetInSync() || stream.GetAddress() != address {
			return fmt.Errorf("agent of %s is not in sync with %s: %v", agent.Node.Name, address, stream)
		}
		return nil
	})
}

// waitSynced waits until the calculator has read its source. Were it behind
// the agents, they would be refused for a while.
func (c calculator) waitSynced(ctx context.Context, f *fixture) error {
	return testbed.Eventually(ctx, func() error {
		revision, err := c.metric(ctx, f, "millrace_calculator_revision")
		if err == nil && revision == 0 {
			err = errors.New("the second calculator has not read its source")
		}
		return err
	})
}

// resourcesSent is how many resources the calculator sent in all.
func (c calculator) resourcesSent(ctx context.Context, t *testing.T, f *fixture) float64 {
	t.Helper()
	sum, err := c.metric(ctx, f, "millrace_calculator_resources_sent_total")
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// metric returns the sum of a metric's series.
func (c calculator) metric(ctx context.Context, f *fixture, name string) (float64, error) {
	return c.sum(ctx, f, name, func(line string) bool {
		rest, ok := strings.CutPrefix(line, name)
		return ok && rest != "" && (rest[0] == ' ' || rest[0] == '{')
	})
}

// series returns one series of a metric.
func (c calculator) series(ctx context.Context, f *fixture, name string) (float64, error) {
	return c.sum(ctx, f, name, func(line string) bool { return strings.HasPrefix(line, name+" ") })
}

// sum adds the values of the lines of /metrics that are wanted.
func (c calculator) sum(ctx context.Context, f *fixture, name string, wanted func(line string) bool) (float64, error) {
	lines, err := c.http(ctx, f, "/metrics")
	if err != nil {
		return 0, err
	}
	var sum float64
	found := false
	for line := range strings.Lines(lines) {
		line = strings.TrimSpace(line)
		if !wanted(line) {
			continue
		}
		value, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("metric %q: %w", line, err)
		}
		sum, found = sum+value, true
	}
	if !found {
		return 0, fmt.Errorf("there is no metric %s", name)
	}
	return sum, nil
}

// http asks the calculator's server for metrics and probes, and fails unless
// the answer is a good one.
func (c calculator) http(ctx context.Context, f *fixture, path string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: f.Control.DialContext}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", c.metricsPort, path), nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", path, response.Status, body)
	}
	return string(body), err
}
