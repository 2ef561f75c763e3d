// SPDX-License-Identifier: Apache-2.0

package skew

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/testbed"
)

// version is what an agent says it is.
func version(t *testing.T, agent *testbed.Agent) string {
	t.Helper()
	status, err := agent.GetStatus(harness.Limit(t, 10*time.Second), &agentv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return status.GetVersion()
}

// serve applies services and waits until every node has them.
func serve(t *testing.T, stack *testbed.Stack, services ...testbed.Service) {
	t.Helper()
	if err := stack.Serve(harness.Limit(t, 30*time.Second), services...); err != nil {
		t.Fatal(err)
	}
}

// isClean waits until an agent finds nothing wrong: neither an error nor a
// difference between what it holds and the kernel.
func isClean(t *testing.T, agent *testbed.Agent) {
	t.Helper()
	ctx := harness.Limit(t, 20*time.Second)
	err := testbed.Eventually(ctx, func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if len(status.GetErrors()) > 0 || len(status.GetProblems()) > 0 {
			return fmt.Errorf("agent of %s, %s: errors %v, problems %q", agent.Node.Name, status.GetVersion(), status.GetErrors(), status.GetProblems())
		}
		if found := differences(ctx, agent); len(found) > 0 {
			return fmt.Errorf("agent of %s, %s: kernel differs: %s", agent.Node.Name, status.GetVersion(), strings.Join(found, "; "))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// differences are those between what an agent holds and the kernel.
func differences(ctx context.Context, agent *testbed.Agent) []string {
	stream, err := agent.DiffDesired(ctx, &agentv1.DiffDesiredRequest{})
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for {
		difference, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			return append(found, err.Error())
		}
		found = append(found, difference.String())
	}
}

// nearAndFar are services with a backend on the first node and on the second,
// programmed everywhere.
func nearAndFar(t *testing.T, stack *testbed.Stack) (near, far testbed.Service) {
	t.Helper()
	near = newService("near", 1, stack.Nodes[0].Pods[1].Endpoint())
	far = newService("far", 2, stack.Nodes[1].Pods[0].Endpoint())
	serve(t, stack, near, far)
	return near, far
}

// startPrevious starts a calculator and agents of the previous release.
func startPrevious(t *testing.T, stack *testbed.Stack) {
	t.Helper()
	useCalculator(t, stack, previous)
	for node := range stack.Nodes {
		agent := useAgent(t, stack, node, testbed.AgentOptions{Binaries: previous})
		if got := version(t, agent); got != release.Version {
			t.Fatalf("the agent of the previous release says that it is %s", got)
		}
	}
	for _, agent := range stack.Agents {
		settled(t, stack, agent)
	}
}

// TestAgentUpgradeAndDowngrade exchanges a node's agent for that of the other
// release, to and fro, while flows go on and services change.
func TestAgentUpgradeAndDowngrade(t *testing.T) {
	needPrevious(t)
	rounds := 1
	if reliability.Soak() {
		rounds = 20
	}
	stack := startCluster(t, testbed.Options{Nodes: 2, PodsPerNode: 3})
	startPrevious(t, stack)
	near, far := nearAndFar(t, stack)
	load := startLoad(t, ways(t, stack, near, far))
	number := 10
	for range rounds {
		for _, binaries := range []testbed.Binaries{present, previous} {
			agent := useAgent(t, stack, 0, testbed.AgentOptions{Binaries: binaries})
			settled(t, stack, agent)
			number++
			serve(t, stack, newService(fmt.Sprintf("added-%d", number), number, stack.Nodes[1].Pods[1].Endpoint()))
			isClean(t, agent)
		}
	}
	load.finish(t)
}

// TestStateLog lets each release start from the other's state alone, without a
// calculator: all that was held is there.
func TestStateLog(t *testing.T) {
	needPrevious(t)
	stack := startCluster(t, testbed.Options{Nodes: 2, PodsPerNode: 3})
	startPrevious(t, stack)
	near, far := nearAndFar(t, stack)
	load := startLoad(t, ways(t, stack, near, far))
	if err := stack.ApplyMany(200, 5); err != nil {
		t.Fatal(err)
	}
	settled(t, stack, stack.Agents[0])
	number := 10
	for _, binaries := range []testbed.Binaries{present, previous, present} {
		before := programmed(harness.Limit(t, 20*time.Second), t, stack.Agents[0])
		held := heldCounts(t, stack.Agents[0])
		if err := stack.Calculator.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		agent := useAgent(t, stack, 0, testbed.AgentOptions{Binaries: binaries})
		restored(t, agent)
		if got := heldCounts(t, agent); got != held {
			t.Errorf("%s holds %s of the log of the other release, want %s", version(t, agent), got, held)
		}
		if after := programmed(harness.Limit(t, 20*time.Second), t, agent); !slices.Equal(before, after) {
			t.Errorf("%s changed maps: %s", version(t, agent), firstDifference(before, after))
		}
		if err := agent.WaitServices(harness.Limit(t, 10*time.Second), near, far); err != nil {
			t.Error(err)
		}
		isClean(t, agent)
		// The log grows by what this release appends.
		if err := stack.Calculator.Start(); err != nil {
			t.Fatal(err)
		}
		settled(t, stack, agent)
		number++
		added := newService(fmt.Sprintf("added-%d", number), number, stack.Nodes[1].Pods[1].Endpoint())
		if err := stack.ApplyService(added); err != nil {
			t.Fatal(err)
		}
		if err := agent.WaitServices(harness.Limit(t, 20*time.Second), added); err != nil {
			t.Fatal(err)
		}
	}
	load.finish(t)
}

// restored waits until an agent has programmed what its log held.
func restored(t *testing.T, agent *testbed.Agent) {
	t.Helper()
	ctx := harness.Limit(t, 20*time.Second)
	err := testbed.Eventually(ctx, func() error {
		if err := agent.Process.Running(); err != nil {
			return err
		}
		if log := agent.Process.LogTail(200); !strings.Contains(log[max(0, strings.LastIndex(log, `"starting"`)):], `"restored"`) {
			return fmt.Errorf("agent of %s has not programmed its log", agent.Node.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// heldCounts is how many resources of each type an agent holds.
func heldCounts(t *testing.T, agent *testbed.Agent) string {
	t.Helper()
	status, err := agent.GetStatus(harness.Limit(t, 10*time.Second), &agentv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(status.GetHeld())
}

// TestRollingUpgrade upgrades a cluster as an operator does, agents first and
// node by node, then the calculator, and takes it back in reverse order.
// Services change at every step. No request fails.
func TestRollingUpgrade(t *testing.T) {
	needPrevious(t)
	stack := startCluster(t, testbed.Options{Nodes: 3, PodsPerNode: 3})
	startPrevious(t, stack)
	near, far := nearAndFar(t, stack)
	load := startLoad(t, ways(t, stack, near, far))
	number := 10
	change := func() {
		t.Helper()
		number++
		pods := stack.Nodes[number%3].Pods
		added := newService(fmt.Sprintf("added-%d", number), number, pods[0].Endpoint(), pods[1].Endpoint())
		serve(t, stack, added)
		added.Endpoints = added.Endpoints[1:]
		serve(t, stack, added)
	}
	upgrade := func(binaries testbed.Binaries) {
		t.Helper()
		for node := range stack.Nodes {
			settled(t, stack, useAgent(t, stack, node, testbed.AgentOptions{Binaries: binaries}))
			change()
		}
	}
	exchange := func(binaries testbed.Binaries) {
		t.Helper()
		useCalculator(t, stack, binaries)
		for _, agent := range stack.Agents {
			settled(t, stack, agent)
		}
		change()
	}
	upgrade(present)
	exchange(present)
	if reliability.Soak() {
		exchange(previous)
		upgrade(previous)
		// The other way round: calculators first.
		exchange(present)
		upgrade(present)
	}
	for _, agent := range stack.Agents {
		isClean(t, agent)
	}
	load.finish(t)
}
