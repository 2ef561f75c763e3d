// SPDX-License-Identifier: Apache-2.0

package growth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/reliability/syscalls"
	"github.com/millrace-project/millrace/test/reliability/traffic"
	"github.com/millrace-project/millrace/test/testbed"
)

// binaries are built once for all tests.
var binaries testbed.Binaries

func TestMain(m *testing.M) {
	syscalls.Launch()
	os.Exit(harness.Main(m, &binaries))
}

// rate of the load in requests per second.
func rate() int {
	if reliability.Soak() {
		return 1000
	}
	return 400
}

// world is a cluster of two nodes under load. The first node's agent runs under
// the supervisor.
type world struct {
	*testbed.Cluster
	supervisor *syscalls.Supervisor
	agents     []*testbed.Agent
	traffic    *traffic.Traffic
	sum        traffic.Report
}

func start(t *testing.T, args ...string) *world {
	t.Helper()
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	w := &world{}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.supervisor, err = syscalls.New(t.TempDir())
	must(err)
	t.Cleanup(func() {
		if err := errors.Join(w.supervisor.Err(), w.supervisor.Close()); err != nil {
			t.Errorf("supervisor: %v", err)
		}
	})
	w.Cluster, err = testbed.Start(testbed.Options{Nodes: 2, PodsPerNode: traffic.MinPodsPerNode})
	must(err)
	t.Cleanup(func() {
		for _, agent := range w.agents {
			if t.Failed() && agent.Process != nil {
				t.Logf("agent of %s:\n%s", agent.Node.Name, agent.Process.LogTail(20))
			}
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	must(w.ApplyNodes())
	_, err = w.StartCalculator(testbed.CalculatorOptions{Binaries: binaries})
	must(err)
	under, err := w.supervisor.Command()
	must(err)
	for i, node := range w.Nodes {
		options := testbed.AgentOptions{Binaries: binaries, Args: args}
		if i == 0 {
			options.Under = under
		}
		agent, err := w.StartAgent(node, options)
		must(err)
		w.agents = append(w.agents, agent)
	}
	w.inSync(t)
	w.traffic, err = traffic.Start(w.limit(t), traffic.Options{
		Cluster: w.Cluster, Binaries: binaries, Agents: w.agents, Objects: traffic.Directory(w.Cluster), Rate: rate(),
	})
	must(err)
	return w
}

// patience is far beyond what anything takes on a busy machine.
const patience = 90 * time.Second

func (w *world) limit(t *testing.T) context.Context {
	return harness.Limit(t, patience)
}

func (w *world) inSync(t *testing.T) {
	t.Helper()
	for _, agent := range w.agents {
		if err := agent.WaitInSync(w.limit(t)); err != nil {
			t.Fatal(err)
		}
	}
}

// nothingLost lets the load run a little longer and fails if a request has
// failed since the last time.
func (w *world) nothingLost(t *testing.T, when string) {
	t.Helper()
	sum, err := w.traffic.Report() // of the time before
	if err != nil {
		t.Fatal(err)
	}
	wanted := sum.Requests + uint64(rate()) // a second's, of the time after it
	err = testbed.Within(patience, func() error {
		later, err := w.traffic.Report()
		if err != nil {
			return err
		}
		if sum.Add(later); sum.Requests < wanted {
			return fmt.Errorf("%d requests have ended, not %d yet", sum.Requests, wanted)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	w.sum.Add(sum)
	if sum.Failed > 0 {
		t.Fatalf("%s: %s\n%v", when, sum, sum.Failures[:min(10, len(sum.Failures))])
	}
}

// stop ends the load.
func (w *world) stop(t *testing.T) {
	t.Helper()
	report, err := w.traffic.Stop()
	if err != nil {
		t.Fatal(err)
	}
	w.sum.Add(report)
	if w.sum.Failed > 0 {
		t.Errorf("%v", w.sum.Failures[:min(10, len(w.sum.Failures))])
	}
	t.Log("figure:", w.sum.String())
}

// sizes returns how many entries fit into the maps of an agent.
func (w *world) sizes(t *testing.T, agent *testbed.Agent) map[string]uint32 {
	t.Helper()
	answer, err := agent.ListMaps(w.limit(t), &agentv1.ListMapsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]uint32{}
	for _, m := range answer.GetMaps() {
		sizes[m.GetName()] = m.GetMaxEntries()
	}
	return sizes
}
