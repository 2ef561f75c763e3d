// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"testing"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// TestPodsWithoutAddress knows pods from when they were scheduled until they have
// an address, and again when they have ended.
func TestPodsWithoutAddress(t *testing.T) {
	h := newHarness(t)
	h.pipeline.Synced()
	pod := model.Pod{Namespace: "default", Name: "p", UID: "u"}
	step := func(what string, known bool) {
		t.Helper()
		object := pod
		h.apply(1, &object)
		h.eventually(what, func() bool {
			state, ok := h.pipeline.Pod("default/p")
			return ok == known && (!ok || state == publish.PodState{UID: "u", Node: "n1"})
		})
	}
	step("it is on no node", false)
	pod.NodeName = "n1"
	step("it is on a node", true)
	pod.PodIP = "10.0.0.1"
	step("it has an address", false)
	pod.PodIP = "127.0.0.1"
	step("it has an address that cannot be used", true)
	pod.PodIP = "10.0.0.1"
	step("it has an address again", false)
	pod.Phase = "Succeeded"
	step("it has ended", true)
	h.pipeline.Apply([]source.Change{{Key: pod.Key()}}, nil)
	h.eventually("it is gone", func() bool { _, ok := h.pipeline.Pod("default/p"); return !ok })
	pod = model.Pod{Namespace: "default", Name: "p", UID: "u", NodeName: "n1", HostNetwork: true}
	step("it is in the host's network", false)
}
