// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"fmt"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// testDuplicate gives the second node's agent the first one's name. Both say
// so, and neither takes the stream from the other again and again.
func testDuplicate(t *testing.T, f *fixture) {
	ctx := harness.Limit(t, 5*time.Minute)
	meeting, away := f.calculators[0], f.calculators[1]
	if err := away.process.Kill(); err != nil {
		t.Fatal(err)
	}
	meeting.waitAt(ctx, t, f.agents[0])
	if err := f.agents[1].Process.Stop(); err != nil {
		t.Fatal(err)
	}
	second, err := f.StartAgent(f.Nodes[1], testbed.AgentOptions{Binaries: binaries, Calculators: []string{meeting.addresses[1]},
		Args: append(f.agentArgs(t, f.Nodes[0]), "--node-name", f.Nodes[0].Name)})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []*testbed.Agent{f.agents[0], second} {
		err := testbed.Eventually(ctx, func() error {
			status, err := a.GetStatus(ctx, &agentv1.GetStatusRequest{})
			if err == nil && !strings.Contains(strings.Join(status.GetProblems(), "\n"), "two agents have the name of this node") {
				err = fmt.Errorf("the agent at %s has the problems %v", a.Node.Name, status.GetProblems())
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	opened := stream(ctx, t, second)
	pause(ctx, 3*time.Second) // in which they would change places a dozen times
	if s := stream(ctx, t, second); !s.GetConnected() || s.GetConnects() != opened.GetConnects() {
		t.Errorf("the second agent had %d streams, now %d", opened.GetConnects(), s.GetConnects())
	}
	out, err := f.Control.Run(binaries.Ctl, "status", "--calculator", "unix://"+meeting.socket())
	if err != nil || !strings.Contains(string(out), "two agents have this node's name") {
		t.Errorf("millracectl status: %v\n%s", err, out)
	}

	if err := second.Process.Stop(); err != nil {
		t.Fatal(err)
	}
	away.start(t)
	// The first agent would come back by itself, in half a minute at most.
	if err := f.agents[0].Process.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, a := range f.agents {
		if err := a.Start(); err != nil {
			t.Fatal(err)
		}
	}
	away.waitSynced(ctx, t)
	f.waitInSync(ctx, t)
}
