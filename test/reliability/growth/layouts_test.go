// SPDX-License-Identifier: Apache-2.0

package growth

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/testbed"
)

// restart kills an agent, and starts it when its maps have another layout.
func (w *world) restart(t *testing.T, agent *testbed.Agent, maps string) {
	t.Helper()
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if maps != "" {
		if err := agent.Node.ForgeLayouts(maps); err != nil {
			t.Fatal(err)
		}
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	w.inSync(t)
}

// past tells what an agent says of programs of a release before.
func past(ctx context.Context, agent *testbed.Agent) (pinned bool, told string, err error) {
	_, err = os.Lstat(filepath.Join(agent.Node.BPFDir, "past"))
	pinned = err == nil
	status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
	for _, p := range status.GetProblems() {
		if strings.Contains(p, "release before") {
			told = p
		}
	}
	return pinned, told, err
}

// TestLayoutsChange lets agents find maps of other layouts, as after an upgrade,
// on nodes under load.
func TestLayoutsChange(t *testing.T) {
	w := start(t)
	w.nothingLost(t, "before")
	succeeded := func(when string, agent *testbed.Agent) {
		t.Helper()
		ctx := w.limit(t)
		err := testbed.Eventually(ctx, func() error {
			pinned, told, err := past(ctx, agent)
			if err == nil && (pinned || told != "") {
				err = fmt.Errorf("not done: %s", told)
			}
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		w.nothingLost(t, when)
	}
	// One node each: generations that follow each other within minutes have
	// flows whose source ports were another's before.
	agent := w.agents[1]
	w.restart(t, agent, "config")
	succeeded("other settings", agent)
	w.restart(t, agent, "frontends_v.|backends_v.|routes_v.|ids")
	succeeded("other tables", agent)
	// What agents cannot convert stays with the programs of before.
	agent = w.agents[0]
	w.restart(t, agent, "[a-z_]+_v.|ids|config")
	for _, when := range []string{"unknown layouts", "killed", "killed again"} {
		ctx := w.limit(t)
		err := testbed.Eventually(ctx, func() error {
			pinned, told, err := past(ctx, agent)
			if err == nil && (!pinned || !strings.Contains(told, "established_v4")) {
				err = fmt.Errorf("pinned %v, told %q", pinned, told)
			}
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		w.nothingLost(t, when)
		w.restart(t, agent, "")
	}
	w.stop(t)
}
