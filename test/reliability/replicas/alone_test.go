// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// passing are maps whose entries come and go by themselves.
var passing = []string{"ct_", "conntrack", "embryonic", "established", "sock", "stack", "counters", "drops", "udp"}

// testAlone takes both calculators away, then kills the agent: the node goes
// on, and says since when nobody answers.
func testAlone(t *testing.T, f *fixture) {
	ctx := harness.Limit(t, 5*time.Minute)
	agent, pod, far := f.agents[0], f.Nodes[0].Pods[0], f.Nodes[1].Pods[0]
	service := small("alone", 100, far.Endpoint())
	f.apply(ctx, t, service.Objects()...)
	for _, a := range f.agents {
		if err := a.WaitServices(ctx, service); err != nil {
			t.Fatal(err)
		}
	}
	front := netip.AddrPortFrom(service.ClusterIPs[0], 80)
	before := entries(ctx, t, agent)

	gone := time.Now()
	for _, c := range f.calculators {
		if err := c.process.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	f.ask(t, pod, front, far.Name)
	if err := testbed.Eventually(ctx, func() error {
		if s := stream(ctx, t, agent); s.GetConnected() || s.GetDisconnectTime().AsTime().Before(gone.Add(-time.Second)) {
			return fmt.Errorf("the agent's connection is %v", s)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	f.ask(t, pod, front, far.Name)
	restarted := time.Now()
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"healthz": http.StatusOK, "readyz": http.StatusOK} {
		url := fmt.Sprintf("https://127.0.0.1:%d/%s", testbed.MetricsPort, path)
		if err := testbed.Eventually(ctx, func() error {
			body, code, err := get(ctx, &agent.Node.Host, url)
			if err == nil && code != want {
				err = fmt.Errorf("/%s: %d %s", path, code, body)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	t.Logf("figure: ready %v after the start, without a calculator", time.Since(restarted).Round(time.Millisecond))
	f.ask(t, pod, front, far.Name)
	if err := agent.WaitServices(ctx, service, bulkService(services-1, 0)); err != nil {
		t.Error(err)
	}
	if err := same(before, entries(ctx, t, agent)); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	s := stream(ctx, t, agent)
	if since := s.GetDisconnectTime().AsTime(); s.GetConnected() || since.Before(restarted.Add(-time.Second)) || s.GetLastError() == "" {
		t.Errorf("the agent's connection is %v, want none since its start, and why", s)
	}
	out, err := agent.Node.Run(binaries.Ctl, "status", "--agent", "unix://"+agent.Node.Socket)
	if err != nil || !strings.Contains(string(out), "not connected for ") || !strings.Contains(string(out), "the node goes on as it was last told") {
		t.Errorf("millracectl status: %v\n%s", err, out)
	}

	for _, c := range f.calculators {
		c.start(t)
	}
	f.waitInSync(ctx, t)
	if s := stream(ctx, t, agent); s.GetDisconnectTime() != nil {
		t.Errorf("connected, and yet without a calculator since %v", s.GetDisconnectTime().AsTime())
	}
	sent := 0.0
	for _, c := range f.calculators {
		c.waitSynced(ctx, t)
		sent += c.metric(ctx, t, "millrace_calculator_resources_sent_total")
	}
	if sent != 0 {
		t.Errorf("agents that missed nothing were sent %v resources", sent)
	}
	if err := same(before, entries(ctx, t, agent)); err != nil {
		t.Errorf("with calculators again: %v", err)
	}
}

// entries lists what the node's maps hold, but for what comes and goes.
func entries(ctx context.Context, t *testing.T, agent *testbed.Agent) []string {
	t.Helper()
	list, err := agent.MapEntries(ctx, passing)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func same(before, after []string) error {
	if slices.Equal(before, after) {
		return nil
	}
	for _, e := range after {
		if _, found := slices.BinarySearch(before, e); !found {
			return fmt.Errorf("%d entries, were %d; new is %s", len(after), len(before), e)
		}
	}
	return fmt.Errorf("%d entries, were %d", len(after), len(before))
}

// ask demands that the server answers.
func (f *fixture) ask(t *testing.T, client *testbed.Pod, target netip.AddrPort, server string) {
	t.Helper()
	prober, err := f.Probe(&client.Host, binaries)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := prober.Once(probe.Dial{Network: probe.TCP, Target: target}, probe.Exchange{})
	if err != nil {
		t.Fatal(err)
	}
	if answer.Failure != probe.None || answer.Server != server {
		t.Errorf("%s dialled %s: %s %s from %q, want %s", client.Name, target, answer.Failure, answer.Detail, answer.Server, server)
	}
}
