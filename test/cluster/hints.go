// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"strings"
)

// Hints tells a person at a terminal how to use the cluster.
func (c *Cluster) Hints() string {
	var b strings.Builder
	helper, err := c.helper()
	if err != nil {
		helper = "millrace-cluster"
	}
	named := ""
	if c.opts.Name != defaultName {
		named = "--name " + c.opts.Name + " "
	}
	fmt.Fprintf(&b, "\n  export KUBECONFIG=%s\n  kubectl get pods -A -o wide\n", c.Kubeconfig())
	if c.opts.Proxy == Millrace {
		fmt.Fprintf(&b, "  kubectl -n millrace-system exec ds/millrace-agent -c agent -- /millracectl status\n")
		fmt.Fprintf(&b, "  kubectl -n millrace-system exec deploy/millrace-calculator -- /millracectl nodes\n")
	}
	fmt.Fprintf(&b, "  %s exec %snode-1 bash      # a shell on a node\n", helper, named)
	fmt.Fprintf(&b, "  nsenter --net=%s bash      # a shell outside of the nodes\n", c.netns(controlPlanePart))
	return b.String()
}
