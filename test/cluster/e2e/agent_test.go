// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strconv"
	"strings"
	"testing"

	"github.com/millrace-project/millrace/test/cluster/clustertest"
)

// agentMemory is what an agent may take on a node of an idle small cluster.
const agentMemory = 40 << 20

// TestAgentMemory: agents are small on a cluster with little to do.
func TestAgentMemory(t *testing.T) {
	c := clustertest.Millrace(t)
	for _, n := range c.Nodes() {
		// The container's own first process, not a command in it.
		out, err := n.Exec(t.Context(), "ps", "-o", "rss=", "-C", "millrace-agent")
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(out)
		if len(lines) != 1 {
			t.Fatalf("%s has %d agents", n.Name, len(lines))
		}
		kib, err := strconv.Atoi(lines[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("figure: agent RSS on %s of an idle cluster of %d nodes: %.1f MiB", n.Name, len(c.Nodes()), float64(kib)/1024)
		if kib<<10 > agentMemory {
			t.Errorf("the agent of %s takes %d KiB; at most %d are allowed", n.Name, kib, agentMemory>>10)
		}
	}
}

// TestNoKubeProxy: no node runs kube-proxy, or has rules of its kind.
func TestNoKubeProxy(t *testing.T) {
	c := clustertest.Millrace(t)
	for _, n := range c.Nodes() {
		out, err := n.Exec(t.Context(), "ps", "-e", "-o", "args=")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out, "kubelet") {
			t.Fatalf("processes of %s are not seen:\n%s", n.Name, out)
		}
		if strings.Contains(out, "kube-proxy") {
			t.Errorf("%s runs kube-proxy:\n%s", n.Name, out)
		}
		rules, err := n.Exec(t.Context(), "nft", "list", "ruleset")
		if err != nil {
			t.Fatal(err)
		}
		for _, sign := range []string{"KUBE-SERVICES", "KUBE-SVC", "table ip kube-proxy", "table ip6 kube-proxy"} {
			if strings.Contains(rules, sign) {
				t.Errorf("%s has rules of kube-proxy (%s)", n.Name, sign)
			}
		}
	}
}

// TestStartTime tells how long the shared cluster took to start.
func TestStartTime(t *testing.T) {
	c := clustertest.Cluster(t)
	if c.StartTook() == 0 {
		t.Fatal("the cluster has not come up")
	}
	o := c.Options()
	t.Logf("figure: start of a cluster of %d nodes (%s, %s, %s) until all pods run: %.1f s", o.Nodes, o.Proxy, o.Family, o.CNI, c.StartTook().Seconds())
	if out, err := c.Kubectl(t.Context(), nil, "get", "nodes", "-o=name"); err != nil || len(strings.Fields(out)) != o.Nodes {
		t.Errorf("nodes are %q (%v), want %d", out, err, o.Nodes)
	}
}
