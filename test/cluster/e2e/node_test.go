// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/cluster"
	"github.com/millrace-project/millrace/test/cluster/clustertest"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestServicesStartAgain: a node's services come back when they end, and pods
// can be started after that.
func TestServicesStartAgain(t *testing.T) {
	c := clustertest.Cluster(t)
	n := c.Nodes()[len(c.Nodes())-1]
	ctx := harness.Limit(t, 2*time.Minute)
	for _, service := range []string{"containerd", "kubelet"} {
		before, err := n.ServicePID(service)
		if err != nil || before == 0 {
			t.Fatalf("%s does not run (%v)", service, err)
		}
		if err := n.Kill(ctx, service); err != nil {
			t.Fatal(err)
		}
		if err := testbed.Eventually(ctx, func() error {
			now, err := n.ServicePID(service)
			if err != nil {
				t.Fatal(err)
			}
			if now == 0 || now == before {
				return fmt.Errorf("%s has not come back", service)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	namespace := clustertest.Namespace(t, c, "again")
	overrides := fmt.Sprintf(`{"spec":{"nodeName":%q,"terminationGracePeriodSeconds":1}}`, n.Name)
	if _, err := c.Kubectl(ctx, nil, "-n", namespace, "run", "pod", "--image="+cluster.AgnhostImage, "--overrides="+overrides); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Kubectl(ctx, nil, "-n", namespace, "wait", "--for=condition=Ready", "pod/pod", "--timeout=90s"); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := n.Exec(ctx, "hostname"); err != nil || strings.TrimSpace(out) != n.Name {
		t.Errorf("hostname on %s is %q (%v)", n.Name, out, err)
	}
}
