// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/bpf/layout"
)

// extraPrefix is the pod prefix of the node that exists in manifests only.
var extraPrefix = netip.MustParsePrefix("10.244.77.0/24")

// topology is a change of pods or nodes, there and back.
type topology struct {
	name        string
	there, back func(t *testing.T, w *world)
}

var topologies = []topology{
	{"pod",
		func(t *testing.T, w *world) {
			if _, err := w.stack.AddPod(w.node); err != nil {
				t.Fatal(err)
			}
			w.applyNodes(t)
		},
		func(t *testing.T, w *world) {
			if err := w.stack.RemovePod(w.node.Pods[len(w.node.Pods)-1]); err != nil {
				t.Fatal(err)
			}
			w.applyNodes(t)
		}},
	{"node", func(t *testing.T, w *world) { w.setExtraNode(t, true) }, func(t *testing.T, w *world) { w.setExtraNode(t, false) }},
}

func (w *world) applyNodes(t *testing.T) {
	t.Helper()
	if err := w.stack.ApplyNodes(); err != nil {
		t.Fatal(err)
	}
}

func (w *world) setExtraNode(t *testing.T, there bool) {
	t.Helper()
	w.extraNode = there
	var err error
	if there {
		err = w.stack.Apply("extra-node", &corev1.Node{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: "node-77", UID: "uid-node-77"},
			Spec:       corev1.NodeSpec{PodCIDR: extraPrefix.String(), PodCIDRs: []string{extraPrefix.String()}},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.30.0.77"}}},
		})
	} else {
		err = w.stack.Delete("extra-node")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// checkTopology tells whether the devices of all pods and the uplink have their
// programs, no other device has any, and routes know the nodes.
func (w *world) checkTopology(status *agentv1.GetStatusResponse) error {
	want := []string{"eth0", "eth0"}
	for _, pod := range w.node.Pods {
		want = append(want, pod.Device, pod.Device)
	}
	slices.Sort(want)
	var have []string
	for _, a := range status.GetDataplane().GetAttachments() {
		if !strings.HasPrefix(a.GetHook(), "cgroup/") {
			have = append(have, a.GetTarget())
		}
	}
	slices.Sort(have)
	if !slices.Equal(have, want) {
		return fmt.Errorf("programs are attached to %v, want %v", have, want)
	}
	known := false
	err := eachPinned(w.node, "routes_v4", func(key layout.RouteKey[layout.V4], _ layout.Route) {
		known = known || key.Prefix() == extraPrefix
	})
	if err == nil && known != w.extraNode {
		err = fmt.Errorf("route to the node that comes and goes: %v, want %v", known, w.extraNode)
	}
	return err
}
