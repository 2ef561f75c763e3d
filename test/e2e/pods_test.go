// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestPodsComeAndGo starts pods on a running node and ends them, several
// times with the same name and addresses: each has programs while it lives
// and leaves none.
func TestPodsComeAndGo(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	node, agent := stack.Nodes[0], stack.Agents[0]
	service := newService("steady", 1, stack.Nodes[1].Pods[0].Endpoint())
	serve(t, stack, service)
	ctx := harness.Limit(t, 60*time.Second)
	before := attachments(t, agent)
	pinsBefore := pins(t, node)
	for round := range 3 {
		pod, err := stack.AddPod(node)
		if err != nil {
			t.Fatal(err)
		}
		if err := stack.ApplyNodes(); err != nil {
			t.Fatal(err)
		}
		waitStatus(ctx, t, agent, "attached to the new pod", func(status *agentv1.GetStatusResponse) bool {
			for _, device := range status.GetDataplane().GetDevices() {
				if device.GetName() == pod.Device && device.GetRole() == "pod" {
					return len(status.GetDataplane().GetAttachments()) > before
				}
			}
			return false
		})
		if err := stack.ServeEcho(echoPort, &pod.Host); err != nil {
			t.Fatal(err)
		}
		fresh := newService("fresh", 2, pod.Endpoint())
		serve(t, stack, fresh)
		each(t, func(t *testing.T, bypass bool, network string, family int) {
			answer := ask(t, prober(t, stack, &pod.Host, bypass), probe.Dial{Network: network, Target: clusterIP(service, family)})
			if answer.Failure != probe.None || answer.Client.Addr() != pod.IP(family) {
				t.Errorf("round %d: from the new pod: %+v", round, answer)
			}
			answer = ask(t, prober(t, stack, &node.Pods[0].Host, bypass), probe.Dial{Network: network, Target: clusterIP(fresh, family)})
			if answer.Server != pod.Name {
				t.Errorf("round %d: to the new pod: %+v", round, answer)
			}
			answer = ask(t, prober(t, stack, stack.Client, false), probe.Dial{Network: network, Target: nodePort(fresh, stack.Nodes[1], family)})
			if answer.Server != pod.Name {
				t.Errorf("round %d: from outside to the new pod: %+v", round, answer)
			}
		})
		if err := stack.RemovePod(pod); err != nil {
			t.Fatal(err)
		}
		unserve(t, stack, fresh)
		if err := stack.ApplyNodes(); err != nil {
			t.Fatal(err)
		}
		waitStatus(ctx, t, agent, "rid of the pod's programs", func(status *agentv1.GetStatusResponse) bool {
			return len(status.GetDataplane().GetAttachments()) == before
		})
		err = testbed.Within(10*time.Second, func() error {
			if now := pins(t, node); now != pinsBefore {
				return fmt.Errorf("pins of the node are\n%s\nand were before\n%s", now, pinsBefore)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// attachments counts an agent's.
func attachments(t *testing.T, agent *testbed.Agent) int {
	t.Helper()
	status, err := agent.GetStatus(harness.Limit(t, 10*time.Second), &agentv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return len(status.GetDataplane().GetAttachments())
}

// pins lists a node's.
func pins(t *testing.T, node *testbed.Node) string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(node.BPFDir, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(paths, "\n")
}

// TestEarlierConnections proves that connections from before Millrace go on
// when it starts: they have no record and are none of its business.
func TestEarlierConnections(t *testing.T) {
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	cluster, err := testbed.Start(testbed.Options{Nodes: 2, PodsPerNode: 2, Masquerade: true})
	if err != nil {
		t.Fatal(err)
	}
	stack := &testbed.Stack{Cluster: cluster, Binaries: binaries}
	t.Cleanup(func() {
		if t.Failed() {
			harness.Logs(t, stack)
		}
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	})
	pods, node := stack.Pods(), stack.Nodes[0]
	if err := stack.ServeEcho(echoPort, stack.Client, &pods[1].Host, &pods[2].Host, &node.Host, &stack.Nodes[1].Host); err != nil {
		t.Fatal(err)
	}
	for _, network := range networks {
		if err := node.HostPort(network, 9080, pods[1], echoPort); err != nil {
			t.Fatal(err)
		}
	}
	var open []conversation
	for _, family := range families {
		pod, host, client := prober(t, stack, &pods[0].Host, false), prober(t, stack, &node.Host, false), prober(t, stack, stack.Client, false)
		for _, c := range []struct {
			name   string
			prober *testbed.Prober
			server *testbed.Host
			port   uint16
		}{
			{"pod to pod", pod, &pods[1].Host, echoPort},
			{"pod to pod on the other node", pod, &pods[2].Host, echoPort},
			{"pod to the other node", pod, &stack.Nodes[1].Host, echoPort},
			{"pod to outside", pod, stack.Client, echoPort},
			{"node to pod", host, &pods[1].Host, echoPort},
			{"outside to node", client, &node.Host, echoPort},
			{"outside to host port", client, &node.Host, 9080},
		} {
			path := path{c.name, c.prober, at(c.server, c.port)}
			open = append(open, converseFamily(t, path, family)...)
		}
	}
	goOn(t, "before", open)
	if err := stack.Up(harness.Limit(t, 60*time.Second)); err != nil {
		t.Fatal(err)
	}
	goOn(t, "after", open)
}
