// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// tokenAgent is an agent that shows a token of a file.
type tokenAgent struct {
	*testbed.Agent
	file string
	// args are those that it was started with.
	args []string
}

// startTokenAgent starts a node's agent, whose token file is not there yet.
func (c *callers) startTokenAgent(t *testing.T, node *testbed.Node, calculators ...string) *tokenAgent {
	t.Helper()
	ca, file := writeFile(t, "ca.crt", c.authorities), filepath.Join(t.TempDir(), "token")
	args := []string{"--insecure=false", "--listen=", "--tls-ca", ca, "--tls-server-name", serverName, "--token-file", file}
	agent, err := c.StartAgent(node, testbed.AgentOptions{Binaries: binaries, Calculators: calculators, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return &tokenAgent{Agent: agent, file: file, args: args}
}

// show writes the token as the kubelet does.
func (a *tokenAgent) show(t *testing.T, token string) {
	t.Helper()
	if err := os.WriteFile(a.file+".new", []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(a.file+".new", a.file); err != nil {
		t.Fatal(err)
	}
}

// restart kills the agent and starts it again.
func (a *tokenAgent) restart(t *testing.T) {
	t.Helper()
	restart(t, a.Agent)
}

func (a *tokenAgent) waitInSync(ctx context.Context, t *testing.T) {
	t.Helper()
	if err := a.WaitInSync(ctx); err != nil {
		t.Fatal(err)
	}
}

// awaitTold waits until the agent's status has these words, among its problems or
// in its last error.
func (a *tokenAgent) awaitTold(ctx context.Context, t *testing.T, words ...string) {
	t.Helper()
	told := func(s *agentv1.GetStatusResponse) string {
		return lastError(s) + "; " + strings.Join(s.GetProblems(), "; ")
	}
	if err := awaitWords(ctx, a.Agent, told, words...); err != nil {
		t.Fatal(err)
	}
}

// TestAgentsShowTokens runs agents whose tokens are missing, come, are another
// node's, are renewed, and are shown while the API server is away.
func TestAgentsShowTokens(t *testing.T) {
	ctx := harness.Limit(t, 180*time.Second)
	c, r := startGuarded(ctx, t)
	first, second := c.startTokenAgent(t, c.Nodes[0], r.address), c.startTokenAgent(t, c.Nodes[1], r.address)
	first.show(t, c.agentToken(ctx, t, c.Nodes[0].Name))
	first.waitInSync(ctx, t)
	second.awaitTold(ctx, t, "--token-file", "no such file", "read this agent's token")

	// Node A's credential is of no use on node B.
	second.show(t, c.agentToken(ctx, t, c.Nodes[0].Name))
	second.awaitTold(ctx, t, "hello.node_name", fmt.Sprintf("the credential is of node %q", c.Nodes[0].Name))
	second.show(t, c.agentToken(ctx, t, c.Nodes[1].Name))
	second.waitInSync(ctx, t)
	if status, err := second.GetStatus(ctx, &agentv1.GetStatusRequest{}); err != nil || len(status.GetProblems()) != 0 {
		t.Errorf("problems %v, %v are left after the token has come", status.GetProblems(), err)
	}
	fleet := func(connected int) func(*calculatorv1.GetStatusResponse) bool {
		return func(*calculatorv1.GetStatusResponse) bool {
			nodes, err := r.ListNodes(ctx, &calculatorv1.ListNodesRequest{})
			for _, node := range nodes.GetNodes() {
				if node.GetConnected() {
					connected--
				}
			}
			return err == nil && connected == 0
		}
	}
	r.await(ctx, t, "both nodes are connected", fleet(2))

	// While the API server is away, who was reviewed comes back, and who was not
	// waits for it, with what the node holds.
	renewed := c.agentToken(ctx, t, c.Nodes[1].Name)
	if err := c.plane.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	first.restart(t)
	first.waitInSync(ctx, t)
	second.show(t, renewed)
	second.restart(t)
	second.awaitTold(ctx, t, "cannot be reviewed now")
	r.awaitProblem(ctx, t, "Review", "credentials", "the API server does not answer")
	if err := c.plane.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	second.waitInSync(ctx, t)
	r.await(ctx, t, "nothing is wrong any more", func(s *calculatorv1.GetStatusResponse) bool { return len(s.GetProblems()) == 0 })

	// A calculator that may not ask says so.
	if _, err := c.plane.Kubectl(ctx, nil, "delete", "clusterrolebinding", "millrace-calculator"); err != nil {
		t.Fatal(err)
	}
	second.show(t, c.agentToken(ctx, t, c.Nodes[1].Name))
	second.restart(t)
	r.awaitProblem(ctx, t, "Review", "credentials", "forbidden", "tokenreviews")
}
