// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"maps"
	"testing"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
)

// TestMismatches compares what a node says it has with what the API server has.
func TestMismatches(t *testing.T) {
	pods := map[string]publish.PodState{
		"default/starting": {UID: "s", Node: "n1"}, "default/elsewhere": {UID: "e", Node: "n2"}, "default/anew": {UID: "new", Node: "n1"},
	}
	c := newCalculator(t, publish.Options{Pod: func(key string) (publish.PodState, bool) { p, ok := pods[key]; return p, ok }})
	batch := cluster(0, "n1", "n2")
	endpoint := func(node, pod, uid string) publish.Change {
		change := upsert(publish.Audience("node/"+node), typeEndpoint, pod, 1)
		change.Resource.GetEndpoint().Uid = uid
		return change
	}
	batch.Changes = append(batch.Changes, endpoint("n1", "default/runs", "r"), endpoint("n1", "default/other", "o"), endpoint("n2", "default/far", "f"))
	c.publish(batch)
	a := newAgent(t, "n1")
	a.connect(c)
	report := &dataplanev1.Report{}
	for pod, uid := range map[string]string{
		"default/runs": "r", "default/starting": "s", // as they should be
		"default/other": "x", "default/far": "f", "default/elsewhere": "e", "default/anew": "old", "default/ghost": "g",
	} {
		report.LocalEndpoints = append(report.LocalEndpoints, &dataplanev1.LocalEndpoint{
			Name: &dataplanev1.ResourceName{Type: typeEndpoint, Key: pod}, Uid: uid,
		})
	}
	a.send(&dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Report{Report: report}})
	var nodes []*calculatorv1.NodeState
	c.eventually("the report has come", func() bool { nodes = c.service.Nodes(); return nodes[0].GetReport() != nil })
	c.service.FindMismatches(nodes)
	got := map[string]string{}
	for _, m := range nodes[0].GetEndpointMismatches() {
		got[m.GetPod()+" "+m.GetUid()] = m.GetMessage()
	}
	want := map[string]string{
		"default/other x":     "the pod of this name has UID o",
		"default/far f":       "there is no pod of this name on the node",
		"default/elsewhere e": "the pod was scheduled to node n2",
		"default/anew old":    "the pod of this name has UID new",
		"default/ghost g":     "there is no pod of this name on the node",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if len(nodes[1].GetEndpointMismatches()) > 0 {
		t.Errorf("the other node: %v", nodes[1])
	}
}
