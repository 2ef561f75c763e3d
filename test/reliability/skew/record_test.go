// SPDX-License-Identifier: Apache-2.0

package skew

import (
	"errors"
	"flag"
	"os"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// recording is set by `make release-fixtures`.
var recording = flag.Bool("record", false, "record the sessions of the newest release instead of testing those that are there")

// tapPort is the tap's, on the control host.
const tapPort = 7801

// steps are the states of a cluster that the sessions go through: every kind of
// frontend, both families and protocols, services with and without endpoints,
// and then changes of each.
func steps(stack *testbed.Stack) map[string][]testbed.Service {
	first, second := stack.Nodes[0].Pods, stack.Nodes[1].Pods
	balanced := newService("balanced", 1, first[0].Endpoint(), first[1].Endpoint(), second[0].Endpoint())
	balanced.LoadBalancerIPs = append(balanced.LoadBalancerIPs, testbed.ExternalIP(4, 101), testbed.ExternalIP(6, 101))
	single := testbed.Service{Name: "single", ClusterIPs: balanced.ClusterIPs[:1:1], Endpoints: []testbed.Endpoint{second[1].Endpoint()},
		Ports: []testbed.Port{{Protocol: corev1.ProtocolUDP, Port: 53, Target: 8053}}}
	single.ClusterIPs = newService("", 2).ClusterIPs[:1]
	empty := newService("empty", 3)
	leaving := newService("leaving", 4, first[0].Endpoint())
	host := newService("host", 5, stack.Nodes[0].Endpoint(), stack.Nodes[1].Endpoint())
	host.Namespace = "system"

	fewer, filled, moved := balanced, empty, single
	fewer.Endpoints = fewer.Endpoints[1:]
	filled.Endpoints = []testbed.Endpoint{first[1].Endpoint()}
	moved.Ports = []testbed.Port{{Protocol: corev1.ProtocolUDP, Port: 5353, Target: 8053}}
	arriving := newService("arriving", 6, second[0].Endpoint())
	return map[string][]testbed.Service{
		"step-1": {balanced, single, empty, leaving, host},
		"step-2": {fewer, moved, filled, arriving, host},
		"step-3": {balanced, moved, empty, arriving, host},
	}
}

// applyStep makes a cluster's services those of a step, in one file and so in one
// revision, and keeps its manifests with the release.
func applyStep(t *testing.T, stack *testbed.Stack, step string) {
	t.Helper()
	var objects []runtime.Object
	for _, service := range steps(stack)[step] {
		objects = append(objects, service.Objects()...)
	}
	if err := stack.Apply("services", objects...); err != nil {
		t.Fatal(err)
	}
	kept := stepDir(release, step)
	if err := os.MkdirAll(kept, 0o755); err != nil {
		t.Fatal(err)
	}
	copyManifests(t, stack.ManifestDir(), kept)
}

// revision is the calculator's newest.
func revision(t *testing.T, stack *testbed.Stack) uint64 {
	t.Helper()
	status, err := stack.Calculator.GetStatus(harness.Limit(t, 10*time.Second), &calculatorv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return status.GetRevision()
}

// TestRecord writes the sessions of the newest release's own programs.
func TestRecord(t *testing.T) {
	if !*recording {
		return // `make release-fixtures` alone records
	}
	if noPrevious != nil {
		t.Fatal(noPrevious)
	}
	stack := startCluster(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	var current atomic.Pointer[session]
	record := func(d direction) change {
		return func(message []byte) [][]byte {
			current.Load().add(d, message)
			return asItIs(message)
		}
	}
	address := startTap(t, stack, tapPort, record(up), record(down))
	// begin starts a session with the cluster at a step.
	begin := func(step string) (*session, *testbed.Agent) {
		s := &session{}
		current.Store(s)
		s.add(manifests, []byte(step))
		if stack.Calculator == nil {
			applyStep(t, stack, step)
			useCalculator(t, stack, previous)
		} else {
			before := revision(t, stack)
			applyStep(t, stack, step)
			err := testbed.Within(20*time.Second, func() error {
				if revision(t, stack) == before {
					return errors.New("the calculator has not read " + step)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		agent := useAgent(t, stack, 0, testbed.AgentOptions{Binaries: previous, Calculators: []string{address}})
		settled(t, stack, agent)
		if err := agent.WaitServices(harness.Limit(t, 20*time.Second), steps(stack)[step]...); err != nil {
			t.Fatal(err)
		}
		if n := s.commits(t); n != 1 {
			t.Fatalf("the agent was brought to %s by %d batches, which cannot be replayed: record again", step, n)
		}
		return s, agent
	}
	end := func(s *session, name string, agent *testbed.Agent) {
		if err := agent.Process.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := s.write(sessionPath(release, name)); err != nil {
			t.Fatal(err)
		}
	}
	joining, agent := begin("step-1")
	end(joining, "join", agent)
	// The calculator has gone on while the agent was away.
	resuming, agent := begin("step-2")
	resuming.add(manifests, []byte("step-3"))
	applyStep(t, stack, "step-3")
	if err := agent.WaitServices(harness.Limit(t, 20*time.Second), steps(stack)["step-3"]...); err != nil {
		t.Fatal(err)
	}
	settled(t, stack, agent)
	if n := resuming.commits(t); n != 2 {
		t.Fatalf("%d batches, want one for each step: record again", n)
	}
	end(resuming, "resume", agent)
}
