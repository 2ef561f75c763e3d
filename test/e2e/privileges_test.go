// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// capabilities are what the manifests give agents, in setpriv's spelling.
var capabilities = []string{"bpf", "net_admin", "perfmon"}

// confined is the beginning of a command line that runs a program as user 0 with
// these capabilities and no way to others, as a container runtime does.
func confined(t *testing.T, capabilities ...string) []string {
	t.Helper()
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skipf("setpriv, of util-linux, is needed to take capabilities away: %v", err)
	}
	bounds := "-all"
	for _, c := range capabilities {
		bounds += ",+" + c
	}
	return []string{setpriv, "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=" + bounds, "--"}
}

// effective are the capabilities of a process.
func effective(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if set, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strings.TrimSpace(set)
		}
	}
	return ""
}

// TestLeastPrivilege runs agents with three capabilities: every way to a service
// works, over restarts, new pods, growing maps and a repair, and in the end they
// remove everything.
func TestLeastPrivilege(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2, AgentUnder: confined(t, capabilities...)})
	agent := stack.Agents[0]
	// CAP_NET_ADMIN is 12, CAP_PERFMON 38, CAP_BPF 39.
	if got := effective(t, agent.Process.PID()); got != "000000c000001000" {
		t.Fatalf("the agent has the capabilities %s", got)
	}
	all := paths(t, stack)
	open := converse(t, all)
	goOn(t, "at first", open)
	callAnew(t, "at first", all)
	noProblems := func(when string) {
		t.Helper()
		for _, agent := range stack.Agents {
			status, err := agent.GetStatus(harness.Limit(t, 10*time.Second), &agentv1.GetStatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if len(status.GetProblems())+len(status.GetErrors()) > 0 {
				t.Errorf("%s: %s: problems %q, errors %v", when, agent.Node.Name, status.GetProblems(), status.GetErrors())
			}
		}
	}
	noProblems("at first")

	for _, agent := range stack.Agents {
		if err := agent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
		if err := agent.WaitInSync(harness.Limit(t, 60*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	goOn(t, "after restarts", open)
	callAnew(t, "after restarts", all)

	ctx := harness.Limit(t, 60*time.Second)
	maps, err := agent.ListMaps(ctx, &agentv1.ListMapsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range maps.GetMaps() {
		if slices.Contains([]string{"established_v4", "established_v6", "frontends_v4", "backends_v6"}, m.GetName()) {
			if _, err := agent.GrowMap(ctx, &agentv1.GrowMapRequest{Name: m.GetName(), MaxEntries: 2 * m.GetMaxEntries()}); err != nil {
				t.Errorf("grow %s: %v", m.GetName(), err)
			}
		}
	}
	goOn(t, "with larger maps", open)
	callAnew(t, "with larger maps", all)

	pod, err := stack.AddPod(stack.Nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := stack.ApplyNodes(); err != nil {
		t.Fatal(err)
	}
	if err := stack.ServeEcho(echoPort, &pod.Host); err != nil {
		t.Fatal(err)
	}
	fresh := newService("fresh", 20, pod.Endpoint())
	serve(t, stack, fresh)
	callAnew(t, "to a new pod", []path{{"host-sockets/new-pod", prober(t, stack, &stack.Nodes[0].Host, false),
		at(&pod.Host, echoPort)}})
	if _, err := agent.Repair(ctx, &agentv1.RepairRequest{}); err != nil {
		t.Errorf("repair: %v", err)
	}
	noProblems("in the end")

	for _, agent := range stack.Agents {
		if err := agent.Process.Stop(); err != nil {
			t.Error(err)
		}
		args := append(confined(t, capabilities...), binaries.Agent, "cleanup", "--remove-state", "--bpf-dir", agent.Node.BPFDir,
			"--state-dir", agent.Node.StateDir, "--state-fallback-dir", "")
		if out, err := agent.Node.Run(args...); err != nil || !strings.HasPrefix(string(out), "removed ") {
			t.Errorf("cleanup of %s: %q, %v", agent.Node.Name, out, err)
		}
		if entries, err := os.ReadDir(agent.Node.BPFDir); err == nil && len(entries) > 0 {
			t.Errorf("%s still has %v", agent.Node.BPFDir, entries)
		}
	}
}

// TestEachPrivilegeIsNeeded takes one capability away: the agent stays, and says
// which one is missing, to who asks it and through the calculator. Given it
// again, it works.
func TestEachPrivilegeIsNeeded(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 1, PodsPerNode: 1})
	agent := stack.Agents[0]
	ctx := harness.Limit(t, 120*time.Second)
	for _, missing := range capabilities {
		if err := agent.Process.Stop(); err != nil {
			t.Fatal(err)
		}
		agent.SetUnder(confined(t, slices.DeleteFunc(slices.Clone(capabilities), func(c string) bool { return c == missing })...)...)
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
		name := "CAP_" + strings.ToUpper(missing) + " "
		awaitUnsuitable(ctx, t, stack, agent, name)
		if err := agent.Process.Running(); err != nil {
			t.Error(err)
		}
	}
	if err := agent.Process.Stop(); err != nil {
		t.Fatal(err)
	}
	agent.SetUnder(confined(t, capabilities...)...)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	if err := agent.WaitInSync(ctx); err != nil {
		t.Fatal(err)
	}
}

// awaitUnsuitable waits until an agent tells a problem, alone, as its status, and
// the calculator has heard of it and counts the node as one that fails.
func awaitUnsuitable(ctx context.Context, t *testing.T, stack *testbed.Stack, agent *testbed.Agent, problem string) {
	t.Helper()
	about := func(problems []string) error {
		if len(problems) != 1 || !strings.Contains(problems[0], problem) {
			return fmt.Errorf("problems %q, want %q", problems, problem)
		}
		return nil
	}
	err := testbed.Eventually(ctx, func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if err := about(status.GetProblems()); err != nil {
			return err
		}
		nodes, err := stack.Calculator.ListNodes(ctx, &calculatorv1.ListNodesRequest{})
		if err != nil {
			return err
		}
		for _, node := range nodes.GetNodes() {
			if node.GetName() == agent.Node.Name {
				if node.GetAck().GetLowestFailedRevision() == 0 {
					return fmt.Errorf("the calculator does not know that nothing is programmed: %v", node)
				}
				return about(node.GetReport().GetProblems())
			}
		}
		return fmt.Errorf("no node %s", agent.Node.Name)
	})
	if err != nil {
		t.Errorf("%s: %v; its log ends with:\n%s", problem, err, agent.Process.LogTail(10))
	}
}
