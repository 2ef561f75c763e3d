// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// passing are maps whose contents go by time and use: flows, what sockets and
// counters remember, numbers that rest before they are given out anew. And
// the array of backends: what no frontend reaches any more is not cleared, but
// written anew when its place is needed.
var passing = []string{"embryonic_", "established_", "fragments_", "connected_", "sockets_", "counters", "ids", "backends_"}

// contents are the entries of an agent's maps that are to stay, and its
// services with the backends that they reach in the kernel.
func contents(ctx context.Context, t *testing.T, agent *testbed.Agent) []string {
	t.Helper()
	all, err := agent.MapEntries(ctx, passing)
	if err != nil {
		t.Fatal(err)
	}
	services, err := agent.ListServices(ctx, &agentv1.ListServicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		service, err := services.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, frontend := range service.GetFrontends() {
			all = append(all, fmt.Sprintf("service %s: %v", service.GetName(), frontend))
		}
	}
	slices.Sort(all)
	return all
}

// TestNoResidue creates, edits and deletes services in many orders: in the
// end the maps hold what they held before, and what should be in the kernel
// is what is.
func TestNoResidue(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 3})
	ctx := harness.Limit(t, 120*time.Second)
	kept := newService("kept", 1, stack.Pods()[0].Endpoint())
	serve(t, stack, kept)
	before := map[string][]string{}
	for _, agent := range stack.Agents {
		before[agent.Node.Name] = contents(ctx, t, agent)
		if len(before[agent.Node.Name]) == 0 {
			t.Fatal("maps of a node with a service are empty")
		}
	}

	var endpoints []testbed.Endpoint
	for _, pod := range stack.Pods() {
		endpoints = append(endpoints, pod.Endpoint())
	}
	random := rand.New(rand.NewPCG(1, 2))
	subset := func() []testbed.Endpoint {
		shuffled := slices.Clone(endpoints)
		random.Shuffle(len(shuffled), func(i, k int) { shuffled[i], shuffled[k] = shuffled[k], shuffled[i] })
		return shuffled[:random.IntN(len(shuffled)+1)]
	}
	for round := range 6 {
		live := map[int]testbed.Service{}
		for step := range 30 {
			n := 2 + random.IntN(8)
			service, exists := live[n]
			switch {
			case !exists:
				service = newService(fmt.Sprintf("churn-%d", n), n, subset()...)
			case random.IntN(4) == 0:
				if err := stack.DeleteService(service); err != nil {
					t.Fatal(err)
				}
				delete(live, n)
				continue
			default:
				service.Endpoints = subset()
				service.Ports = slices.Clone(service.Ports)
				for i := range service.Ports {
					service.Ports[i].Port = uint16(80 + random.IntN(3))
					service.Ports[i].NodePort = uint16(30100 + 10*n + random.IntN(3))
				}
			}
			if err := stack.ApplyService(service); err != nil {
				t.Fatal(err)
			}
			live[n] = service
			// Sometimes wait, so that batches are of different sizes.
			if step%7 == round {
				if err := stack.Agents[0].WaitServices(ctx, service); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, service := range live {
			for _, agent := range stack.Agents {
				if err := agent.WaitServices(ctx, service); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, service := range live {
			unserve(t, stack, service)
		}
	}
	for _, agent := range stack.Agents {
		var diff string
		err := testbed.Within(10*time.Second, func() error {
			diff = difference(before[agent.Node.Name], contents(ctx, t, agent))
			if diff != "" {
				return errors.New("maps differ from before")
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v:\n%s", agent.Node.Name, err, diff)
		}
		if found := desiredDiff(ctx, t, agent); len(found) > 0 {
			t.Errorf("%s: kernel differs from what should be there:\n%s", agent.Node.Name, strings.Join(found, "\n"))
		}
	}
}

// difference lists what only one of two sorted lists has.
func difference(before, after []string) string {
	var lines []string
	for _, line := range before {
		if _, found := slices.BinarySearch(after, line); !found {
			lines = append(lines, "- "+line)
		}
	}
	for _, line := range after {
		if _, found := slices.BinarySearch(before, line); !found {
			lines = append(lines, "+ "+line)
		}
	}
	return strings.Join(lines, "\n")
}

// desiredDiff is what the agent finds different between should and is.
func desiredDiff(ctx context.Context, t *testing.T, agent *testbed.Agent) []string {
	t.Helper()
	stream, err := agent.DiffDesired(ctx, &agentv1.DiffDesiredRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for {
		difference, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, difference.String())
	}
}

// TestTeardownLeavesNothing takes a cluster with everything running on it
// away and looks for traces.
func TestTeardownLeavesNothing(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	all := paths(t, stack)
	callAnew(t, "before", all)
	traces, err := stack.Traces()
	if err != nil {
		t.Fatal(err)
	}
	if found := traces.Present(); len(found) < 40 {
		t.Fatalf("a running cluster leaves more traces than: %s", strings.Join(found, "\n"))
	}
	if err := stack.Close(); err != nil {
		t.Fatal(err)
	}
	// The kernel frees programs and maps a moment after their last user.
	err = testbed.Within(20*time.Second, func() error {
		if found := traces.Present(); len(found) > 0 {
			return fmt.Errorf("left:\n%s", strings.Join(found, "\n"))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
