// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/kube/controlplane"
	"github.com/millrace-project/millrace/test/reliability/skew"
	"github.com/millrace-project/millrace/test/reliability/traffic"
	"github.com/millrace-project/millrace/test/testbed"
)

// binaries are built once for all tests.
var binaries testbed.Binaries

func TestMain(m *testing.M) { os.Exit(harness.Main(m, &binaries)) }

const (
	apiServerPort = 6443
	// rate of the load, requests per second.
	rate = 1000
	// patience is how long a cluster gets to be in order again after a fault,
	// on however busy a machine: it is no measure.
	patience = 4 * time.Minute
)

// rig is a cluster with a real API server, two calculators and an agent on
// each node, under load.
type rig struct {
	*testbed.Cluster
	previous    testbed.Binaries // of the previous release, if they can be had
	faults      []fault          // that can be made
	plane       *controlplane.ControlPlane
	calculators []*testbed.Calculator
	agents      []*testbed.Agent
	traffic     *traffic.Traffic
	record      *record

	// Who breaks something that one of these stands for holds it, and puts it
	// in order before letting it go. Agents come before calculators.
	planeMu, calculatorsMu sync.Mutex
	agentMu                []sync.Mutex
	podsMu                 sync.Mutex

	// steps of each agent's maps, as in sizes.
	steps []int
}

func startRig(t *testing.T) *rig {
	t.Helper()
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	r := &rig{faults: faults}
	release, err := skew.Previous()
	if err == nil {
		r.previous, err = release.Build(binaries)
	}
	if errors.Is(err, skew.ErrNoHistory) {
		// By a test of its own, so that it is counted.
		t.Run(ofPreviousRelease.name, func(t *testing.T) { t.Skip(err) })
	} else if err != nil {
		t.Fatal(err)
	} else {
		r.faults = append(slices.Clone(faults), ofPreviousRelease)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if r.Cluster, err = testbed.Start(testbed.Options{Nodes: 2, PodsPerNode: traffic.MinPodsPerNode}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.close(t) })
	r.agentMu, r.steps = make([]sync.Mutex, len(r.Nodes)), make([]int, len(r.Nodes))
	if r.plane, err = controlplane.Start(ctx, controlplane.Options{
		NetNS: r.Control.NetNS, Address: r.Control.IPv4, Port: apiServerPort,
	}); err != nil {
		t.Fatal(err)
	}
	if err := r.plane.Apply(ctx, r.objects()...); err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := r.plane.Kubeconfig("", "calculator", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for replica := range 2 {
		calculator, err := r.StartCalculator(testbed.CalculatorOptions{Binaries: binaries, Kubeconfig: kubeconfig, Replica: replica})
		if err != nil {
			t.Fatal(err)
		}
		r.calculators = append(r.calculators, calculator)
		addresses = append(addresses, r.ReplicaAddress(replica))
		if err := calculator.WaitSynced(ctx); err != nil {
			t.Fatal(err)
		}
	}
	options := testbed.AgentOptions{Binaries: binaries, Calculators: addresses, Args: arguments(sizes(0))}
	if r.agents, err = r.StartAgents(ctx, options); err != nil {
		t.Fatal(err)
	}
	r.traffic, err = traffic.Start(ctx, traffic.Options{
		Cluster: r.Cluster, Binaries: binaries, Agents: r.agents, Objects: r.plane, Rate: rate,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.record = startRecord(r.traffic, r.examine)
	return r
}

// examine finds what the nodes know of a failed request's flow.
func (r *rig) examine(failure traffic.Failure) string {
	port := fmt.Sprintf(":%d", failure.Local.Port())
	var found strings.Builder
	for _, node := range r.Nodes {
		output, err := exec.Command(binaries.Ctl, "--agent", "unix://"+node.Socket, "conntrack", "-o", "wide").Output()
		if err != nil {
			fmt.Fprintf(&found, "\t%s: %v\n", node.Name, err)
		}
		for line := range strings.Lines(string(output)) {
			if strings.Contains(line, port) {
				fmt.Fprintf(&found, "\t%s: %s", node.Name, line)
			}
		}
	}
	return found.String()
}

// objects are the Nodes and Pods of the cluster.
func (r *rig) objects() []runtime.Object {
	var objects []runtime.Object
	for _, node := range r.Nodes {
		objects = append(objects, node.Object())
	}
	for _, pod := range r.Pods() {
		objects = append(objects, pod.Object())
	}
	return objects
}

func (r *rig) close(t *testing.T) { harness.Close(t, r.Cluster, r.plane.Stop) }

// settled waits until all agents are in sync and have what was written last.
func (r *rig) settled(ctx context.Context) error {
	for _, agent := range r.agents {
		if err := agent.WaitInSync(ctx); err != nil {
			return err
		}
	}
	return r.traffic.Barrier(ctx)
}
