// SPDX-License-Identifier: Apache-2.0

package skew

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/testbed"
)

// reconnectBytes is what a reconnect with nothing changed may cost.
const reconnectBytes = 64 << 10

// programmed are the entries of the maps that an agent writes from what it is
// sent, as they stand in the kernel, but for the large array of backends and for
// settings, which are the agent's own and may differ between releases. A
// frontend that was written anew names another range of it, so equal lists tell
// that nothing was.
func programmed(ctx context.Context, t *testing.T, agent *testbed.Agent) []string {
	t.Helper()
	all, err := agent.MapEntries(ctx, []string{"embryonic_", "established_", "fragments_", "connected_", "sockets_", "counters", "backends_", "config"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(all, func(entry string) bool { return strings.HasPrefix(entry, "frontends") }) {
		t.Fatalf("no frontends among %d entries", len(all))
	}
	slices.Sort(all)
	return all
}

// settled waits until a calculator's agent is in sync with it, as both see it,
// and returns the agent's connection.
func settled(t *testing.T, stack *testbed.Stack, agent *testbed.Agent) *agentv1.CalculatorConnection {
	t.Helper()
	ctx := harness.Limit(t, 60*time.Second)
	var connection *agentv1.CalculatorConnection
	err := testbed.Eventually(ctx, func() error {
		calculator, err := stack.Calculator.GetStatus(ctx, &calculatorv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		connection = status.GetCalculator()
		if connection.GetCalculatorId() != calculator.GetCalculatorId() || !connection.GetInSync() {
			return fmt.Errorf("agent is not in sync with %s: %v", calculator.GetCalculatorId(), connection)
		}
		nodes, err := stack.Calculator.ListNodes(ctx, &calculatorv1.ListNodesRequest{})
		if err != nil {
			return err
		}
		for _, node := range nodes.GetNodes() {
			if node.GetName() == agent.Node.Name && (node.GetAck().GetProgrammedRevision() < node.GetSentRevision() || node.GetReport() == nil) {
				return fmt.Errorf("calculator has not heard of %s what it should: %v", agent.Node.Name, node)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return connection
}

// TestAlternatingCalculators moves one agent between calculators of both
// releases, with an agent of each: nothing is sent that the agent has, nothing
// in the maps is written.
func TestAlternatingCalculators(t *testing.T) {
	needPrevious(t)
	services := 1000
	if reliability.Soak() {
		services = 10000
	}
	for _, of := range []struct {
		name  string
		agent testbed.Binaries
	}{{"previous-agent", previous}, {"present-agent", present}} {
		t.Run(of.name, func(t *testing.T) {
			stack := startCluster(t, testbed.Options{Nodes: 1, PodsPerNode: 2})
			if err := stack.ApplyMany(services, 5); err != nil {
				t.Fatal(err)
			}
			relay := startRelay(t, stack)
			useCalculator(t, stack, previous)
			agent := useAgent(t, stack, 0, testbed.AgentOptions{Binaries: of.agent, Calculators: []string{relay.Address}})
			settled(t, stack, agent)
			first := relay.up.Load() + relay.down.Load()
			before := programmed(harness.Limit(t, time.Minute), t, agent)
			if len(before) < services {
				t.Fatalf("%d entries of %d services", len(before), services)
			}
			for _, calculator := range []struct {
				name     string
				binaries testbed.Binaries
			}{{"present", present}, {"previous", previous}, {"present again", present}} {
				relay.reset()
				useCalculator(t, stack, calculator.binaries)
				connection := settled(t, stack, agent)
				up, down := relay.up.Load(), relay.down.Load()
				t.Logf("figure: to %s: %d bytes up, %d down (all of it: %d), connect %d", calculator.name, up, down, first, connection.GetConnects())
				if up+down > reconnectBytes {
					t.Errorf("to %s: %d bytes passed, at most %d should", calculator.name, up+down, reconnectBytes)
				}
				if up == 0 || down == 0 {
					t.Errorf("to %s: nothing was counted", calculator.name)
				}
				if after := programmed(harness.Limit(t, time.Minute), t, agent); !slices.Equal(before, after) {
					t.Errorf("to %s: entries of maps changed: %s", calculator.name, firstDifference(before, after))
				}
			}
		})
	}
}

// firstDifference names where two sorted lists begin to differ.
func firstDifference(a, b []string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("%q became %q", a[i], b[i])
		}
	}
	return fmt.Sprintf("%d entries became %d", len(a), len(b))
}
