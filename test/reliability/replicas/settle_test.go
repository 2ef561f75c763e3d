// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	"github.com/millrace-project/millrace/test/testbed"
)

// settle changes an object of every kind that is watched, and waits until both
// calculators and all agents have it. Both have then read equally far, all of what was
// written before included, and know it: an agent can go from either to the
// other at once. How they find out without such changes is not the subject
// here.
func (f *fixture) settle(ctx context.Context, t *testing.T) {
	t.Helper()
	f.settled++
	objects := f.nodeObjects()
	for _, object := range objects {
		object.(interface{ SetLabels(map[string]string) }).SetLabels(map[string]string{"settled": strconv.Itoa(f.settled)})
	}
	service := small("settled", 101, f.Nodes[0].Endpoint())
	service.Ports[0].Port += uint16(f.settled)
	f.apply(ctx, t, objects...)
	f.apply(ctx, t, service.Objects()...)
	written := map[string]uint64{}
	client, err := f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	note := func(kind string, object metav1.Object, err error) {
		if err != nil {
			t.Fatal(err)
		}
		version, err := strconv.ParseUint(object.GetResourceVersion(), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		written[kind] = version
	}
	options := metav1.GetOptions{}
	namespace, err := client.CoreV1().Namespaces().Get(ctx, "bulk", options)
	note("namespaces", namespace, err)
	node, err := client.CoreV1().Nodes().Get(ctx, f.Nodes[0].Name, options)
	note("nodes", node, err)
	pod, err := client.CoreV1().Pods(testbed.Namespace).Get(ctx, f.Nodes[0].Pods[0].Name, options)
	note("pods", pod, err)
	settled, err := client.CoreV1().Services(testbed.Namespace).Get(ctx, "settled", options)
	note("services", settled, err)
	slice, err := client.DiscoveryV1().EndpointSlices(testbed.Namespace).Get(ctx, "settled-ipv4", options)
	note("endpointslices", slice, err)

	f.waitRead(ctx, t, written)
	for _, agent := range f.agents {
		if err := agent.WaitServices(ctx, service); err != nil {
			t.Fatal(err)
		}
	}
}

// waitRead waits until both calculators have read so far.
func (f *fixture) waitRead(ctx context.Context, t *testing.T, written map[string]uint64) {
	t.Helper()
	for _, c := range f.calculators {
		if err := testbed.Eventually(ctx, func() error {
			status, err := c.GetStatus(ctx, &calculatorv1.GetStatusRequest{})
			if err != nil {
				return err
			}
			for kind, version := range written {
				if got := status.GetPosition().GetResourceVersions()[kind]; got < version {
					return fmt.Errorf("calculator %d has read %s up to %d, not %d", c.number, kind, got, version)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}
