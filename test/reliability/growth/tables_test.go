// SPDX-License-Identifier: Apache-2.0

package growth

import (
	"fmt"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/testbed"
)

// flags ask for tables of some sizes.
func flags(frontends, backends, routes, ids int) []string {
	return []string{
		fmt.Sprint("--max-frontends=", frontends), fmt.Sprint("--max-backends=", backends),
		fmt.Sprint("--max-routes=", routes), fmt.Sprint("--max-ids=", ids),
	}
}

// extra is a service that only fills tables.
func (w *world) extra(n int) testbed.Service {
	s := testbed.Service{Name: fmt.Sprint("extra-", n), Endpoints: []testbed.Endpoint{w.Nodes[0].Pods[0].Endpoint()},
		Ports: []testbed.Port{{Port: 80, Target: 9999}}}
	for _, family := range []int{4, 6} {
		s.ClusterIPs = append(s.ClusterIPs, testbed.ServiceIP(family, 1000+n))
	}
	return s
}

// settled waits until an agent has programmed the last of n services and has no
// error.
func (w *world) settled(t *testing.T, agent *testbed.Agent, n int) {
	t.Helper()
	ctx := w.limit(t)
	err := testbed.Eventually(ctx, func() error {
		if err := agent.CheckService(ctx, w.extra(n-1)); err != nil {
			return err
		}
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if len(status.GetErrors()) > 0 || len(status.GetProblems()) > 0 {
			return fmt.Errorf("errors %v, problems %v", status.GetErrors(), status.GetProblems())
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", agent.Node.Name, err)
	}
}

// TestTablesGrow fills tables beyond their size, so that agents replace them
// while they run, and starts agents with larger ones.
func TestTablesGrow(t *testing.T) {
	w := start(t, flags(128, 128, 64, 32)...)
	w.nothingLost(t, "before")
	services := 400
	if reliability.Soak() {
		services = 4000
	}
	for n := range services {
		if err := w.ApplyService(w.extra(n)); err != nil {
			t.Fatal(err)
		}
	}
	for _, agent := range w.agents {
		w.settled(t, agent, services)
		sizes := w.sizes(t, agent)
		for _, name := range []string{"frontends_v4", "frontends_v6", "backends_v4", "backends_v6", "ids"} {
			if size := sizes[name]; size < uint32(services) || size&(size-1) != 0 {
				t.Errorf("%s of %s has room for %d", name, agent.Node.Name, size)
			}
		}
	}
	w.nothingLost(t, "growth by policy")
	for line := range strings.Lines(w.agents[0].Process.LogTail(1000)) {
		if strings.Contains(line, "tables were replaced") {
			t.Log(strings.TrimSpace(line))
		}
	}

	for i, agent := range w.agents {
		if err := agent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		agent.SetArgs(flags(20000, 30000, 5000, 10000+i)...)
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
		w.inSync(t)
		w.settled(t, agent, services)
		if sizes := w.sizes(t, agent); sizes["frontends_v6"] != 20000 || sizes["routes_v4"] != 5000 || sizes["backends_v4"] != 30000 {
			t.Errorf("sizes of %s: %v", agent.Node.Name, sizes)
		}
	}
	w.nothingLost(t, "growth by flag")
	w.stop(t)
}

// TestTablesGrowCutShort kills an agent before a call of a start with larger
// tables, again and again: before each of its calls in a soak.
func TestTablesGrowCutShort(t *testing.T) {
	random := reliability.Random(t)
	w := start(t, flags(1000, 1000, 1000, 1000)...)
	agent := w.agents[0]
	size := 1000
	// restart starts the agent with tables a little larger than last time.
	restart := func() {
		t.Helper()
		if err := agent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		size += 10
		agent.SetArgs(flags(size, size, size, size)...)
		if err := agent.Launch(); err != nil {
			t.Fatal(err)
		}
	}
	w.supervisor.Set(nil)
	restart()
	w.inSync(t)
	calls := w.supervisor.Count()
	points := random.Perm(calls)
	if !reliability.Soak() {
		points = points[:6]
	}
	exits := 0
	for _, n := range points {
		w.supervisor.KillBefore(n + 1)
		restart()
		select {
		case <-agent.Process.Done():
		case <-time.After(patience):
			// A start may need some calls less than the first one did.
			w.inSync(t)
			w.supervisor.Set(nil)
			continue
		}
		exits++
		call := w.supervisor.Killed()
		at := fmt.Sprintf("killed before call %d of %d, %v", n+1, calls, call)
		if call == nil {
			t.Fatalf("%s: it ended by itself: %v\n%s", at, agent.Process.Err(), agent.Process.LogTail(10))
		}
		w.nothingLost(t, at)
		w.supervisor.Set(nil)
		if err := agent.Launch(); err != nil {
			t.Fatal(err)
		}
		w.inSync(t)
		if have := w.sizes(t, agent); have["frontends_v4"] != uint32(size) || have["ids"] != uint32(size) {
			t.Errorf("%s: sizes %v, want %d", at, have, size)
		}
	}
	w.nothingLost(t, "the last start")
	w.stop(t)
	t.Logf("figure: %d of %d exit points of a start with larger tables", exits, calls)
	if exits == 0 {
		t.Error("not a single exit was made")
	}
}
