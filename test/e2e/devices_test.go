// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestDevices runs clusters whose uplinks and pods' devices are of other kinds
// than veth: what is below an uplink is left alone, and connections on all paths
// work, the fast path's included, and outlive the agent.
func TestDevices(t *testing.T) {
	for _, c := range []struct {
		name    string
		options testbed.Options
	}{
		{"vlan-netkit", testbed.Options{Uplink: testbed.UplinkVLAN, PodDevice: testbed.PodNetkit}},
		{"bond-netkit-l2", testbed.Options{Uplink: testbed.UplinkBond, PodDevice: testbed.PodNetkitL2}},
		{"vlan-on-bond", testbed.Options{Uplink: testbed.UplinkVLANOnBond}},
		{"bridge", testbed.Options{Uplink: testbed.UplinkBridge}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.options.Available(); err != nil {
				t.Skip(err)
			}
			c.options.Nodes, c.options.PodsPerNode = 2, 2
			stack := startStack(t, c.options)
			all := paths(t, stack)
			for _, agent := range stack.Agents {
				checkRoles(t, agent, c.options.Uplink)
			}
			open := converse(t, all)
			goOn(t, "before", open)
			transfer(t, all, 256<<10, 1000)
			for _, agent := range stack.Agents {
				if err := agent.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			goOn(t, "without agents", open)
			callAnew(t, "without agents", all)
			for _, agent := range stack.Agents {
				if err := agent.Start(); err != nil {
					t.Fatal(err)
				}
				if err := agent.WaitInSync(harness.Limit(t, 60*time.Second)); err != nil {
					t.Fatal(err)
				}
				checkRoles(t, agent, c.options.Uplink)
			}
			goOn(t, "after", open)
			callAnew(t, "after", all)
		})
	}
}

// checkRoles compares what an agent decided about its node's devices with what
// they are.
func checkRoles(t *testing.T, agent *testbed.Agent, uplink testbed.Uplink) {
	t.Helper()
	status, err := agent.GetStatus(harness.Limit(t, 10*time.Second), &agentv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var pods int
	for _, d := range status.GetDataplane().GetDevices() {
		want := "ignored"
		switch {
		case d.GetName() == "eth0":
			want = "uplink"
		case strings.HasPrefix(d.GetName(), "veth-"):
			want = "pod"
			pods++
		}
		if d.GetRole() != want {
			t.Errorf("%s: %s is %q (%s), want %q", agent.Node.Name, d.GetName(), d.GetRole(), d.GetReason(), want)
		}
		t.Logf("%s: %s is %s: %s", agent.Node.Name, d.GetName(), d.GetRole(), d.GetReason())
		master := slices.Contains([]testbed.Uplink{testbed.UplinkBond, testbed.UplinkVLANOnBond, testbed.UplinkBridge}, uplink)
		if master && strings.HasPrefix(d.GetName(), "port") && !strings.HasPrefix(d.GetReason(), "member of ") {
			t.Errorf("%s: %s is ignored because of %q, want as a member", agent.Node.Name, d.GetName(), d.GetReason())
		}
	}
	if pods != len(agent.Node.Pods) {
		t.Errorf("%s: %d devices of pods, want %d", agent.Node.Name, pods, len(agent.Node.Pods))
	}
	for _, a := range status.GetDataplane().GetAttachments() {
		if slices.Contains(uplink.Members(), a.GetTarget()) {
			t.Errorf("%s: %s is attached to %s, which is below the uplink", agent.Node.Name, a.GetProgram(), a.GetTarget())
		}
	}
}
