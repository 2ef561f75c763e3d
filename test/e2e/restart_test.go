// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// conversation is an open socket to a service.
type conversation struct {
	name    string
	prober  *testbed.Prober
	session int
	from    netip.AddrPort
}

// converse opens TCP and connected UDP sockets on every path.
func converse(t *testing.T, paths []path) []conversation {
	t.Helper()
	var conversations []conversation
	for _, path := range paths {
		for _, family := range families {
			conversations = append(conversations, converseFamily(t, path, family)...)
		}
	}
	return conversations
}

// converseFamily is converse for one path and family.
func converseFamily(t *testing.T, path path, family int) []conversation {
	t.Helper()
	var conversations []conversation
	for _, network := range networks {
		target := path.target(family)
		opened := open(t, path.prober, probe.Dial{Network: network, Target: target})
		conversations = append(conversations, conversation{
			fmt.Sprintf("%s/%s/v%d", path.name, network, family), path.prober, opened.Session, target})
	}
	return conversations
}

// goOn makes exchanges on all open sockets.
func goOn(t *testing.T, when string, conversations []conversation) {
	t.Helper()
	for _, c := range conversations {
		for range 2 {
			answer := exchange(t, c.prober, probe.Exchange{Session: c.session, Size: 500})
			if answer.Failure != probe.None || answer.From != c.from {
				t.Errorf("%s: %s: %+v", when, c.name, answer)
			}
		}
	}
}

// callAnew makes an exchange on new sockets on all paths.
func callAnew(t *testing.T, when string, paths []path) {
	t.Helper()
	for _, path := range paths {
		for _, network := range networks {
			for _, family := range families {
				answer := ask(t, path.prober, probe.Dial{Network: network, Target: path.target(family)})
				if answer.Failure != probe.None {
					t.Errorf("%s: %s %s v%d: %+v", when, path.name, network, family, answer)
				}
			}
		}
	}
}

// TestAgentRestart kills the agents while connections are open: open ones and
// new ones work without them, and with them when they are back. What changed
// meanwhile is then programmed.
func TestAgentRestart(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	all := paths(t, stack)
	gone := newService("gone", 8, stack.Pods()[1].Endpoint())
	serve(t, stack, gone)
	open := converse(t, all)
	goOn(t, "before", open)

	for _, agent := range stack.Agents {
		if err := agent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	goOn(t, "without agents", open)
	callAnew(t, "without agents", all)

	added := newService("added", 9, stack.Pods()[1].Endpoint())
	if err := stack.ApplyService(added); err != nil {
		t.Fatal(err)
	}
	if err := stack.DeleteService(gone); err != nil {
		t.Fatal(err)
	}
	for _, agent := range stack.Agents {
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
	}
	ctx := harness.Limit(t, 30*time.Second)
	for _, agent := range stack.Agents {
		if err := agent.WaitInSync(ctx); err != nil {
			t.Fatal(err)
		}
		if err := agent.WaitServices(ctx, added); err != nil {
			t.Error(err)
		}
		if err := agent.WaitNoService(ctx, gone); err != nil {
			t.Error(err)
		}
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, attachment := range status.GetDataplane().GetAttachments() {
			if !attachment.GetAdopted() {
				t.Errorf("%s: %s at %s of %s was attached anew, not adopted", agent.Node.Name,
					attachment.GetProgram(), attachment.GetHook(), attachment.GetTarget())
			}
		}
	}
	goOn(t, "after", open)
	callAnew(t, "after", all)
}

// TestCalculatorRestart kills the calculator: everything goes on, and agents
// find their way back to what changed meanwhile.
func TestCalculatorRestart(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	all := paths(t, stack)
	gone := newService("gone", 8, stack.Pods()[1].Endpoint())
	serve(t, stack, gone)
	open := converse(t, all)
	if err := stack.Calculator.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx := harness.Limit(t, 60*time.Second)
	for _, agent := range stack.Agents {
		waitStatus(ctx, t, agent, "disconnected", func(status *agentv1.GetStatusResponse) bool {
			return !status.GetCalculator().GetConnected()
		})
	}
	goOn(t, "without calculator", open)
	callAnew(t, "without calculator", all)

	// An agent that starts without a calculator serves what it knew.
	if err := stack.Agents[0].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := stack.Agents[0].Start(); err != nil {
		t.Fatal(err)
	}
	if err := stack.Agents[0].WaitServices(ctx, gone); err != nil {
		t.Error(err)
	}
	callAnew(t, "agent started without calculator", all)

	added := newService("added", 9, stack.Pods()[1].Endpoint())
	if err := stack.ApplyService(added); err != nil {
		t.Fatal(err)
	}
	if err := stack.DeleteService(gone); err != nil {
		t.Fatal(err)
	}
	if err := stack.Calculator.Start(); err != nil {
		t.Fatal(err)
	}
	for _, agent := range stack.Agents {
		if err := agent.WaitServices(ctx, added); err != nil {
			t.Error(err)
		}
		if err := agent.WaitNoService(ctx, gone); err != nil {
			t.Error(err)
		}
		if err := agent.WaitInSync(ctx); err != nil {
			t.Error(err)
		}
	}
	goOn(t, "after", open)
	callAnew(t, "after", all)
}

// waitStatus waits until an agent's status meets a condition.
func waitStatus(ctx context.Context, t *testing.T, agent *testbed.Agent, what string, met func(*agentv1.GetStatusResponse) bool) {
	t.Helper()
	err := testbed.Eventually(ctx, func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if !met(status) {
			return fmt.Errorf("agent of %s is not %s: %v", agent.Node.Name, what, status)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestAgentsAreIndependent proves that agents on one kernel share nothing:
// one that is stopped or told otherwise does not change what another node
// does.
func TestAgentsAreIndependent(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	pods := stack.Pods()
	service := newService("shared", 1, pods[0].Endpoint(), pods[2].Endpoint())
	serve(t, stack, service)
	if err := stack.Agents[1].Process.Stop(); err != nil {
		t.Fatal(err)
	}
	service.Endpoints = []testbed.Endpoint{pods[1].Endpoint()}
	if err := stack.ApplyService(service); err != nil {
		t.Fatal(err)
	}
	if err := stack.Agents[0].WaitServices(harness.Limit(t, 20*time.Second), service); err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, bypass bool, network string, family int) {
		dial := probe.Dial{Network: network, Target: clusterIP(service, family)}
		answers, err := prober(t, stack, &pods[0].Host, bypass).Many(20, dial, probe.Exchange{})
		if err != nil {
			t.Fatal(err)
		}
		for _, answer := range answers {
			if answer.Server != pods[1].Name {
				t.Fatalf("node with an agent: %+v, want %s", answer, pods[1].Name)
			}
		}
		answers, err = prober(t, stack, &pods[3].Host, bypass).Many(20, dial, probe.Exchange{})
		if err != nil {
			t.Fatal(err)
		}
		for _, answer := range answers {
			if answer.Server != pods[0].Name && answer.Server != pods[2].Name {
				t.Fatalf("node without an agent: %+v, want %s or %s", answer, pods[0].Name, pods[2].Name)
			}
		}
	})
}
