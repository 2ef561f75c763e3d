// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// PodState is what the API server has of a pod that is no endpoint: one that has
// no address yet, or has ended.
type PodState struct {
	// UID is the pod's, Node where it was scheduled to.
	UID, Node string
}

// FindMismatches adds to nodes the endpoints of theirs that are not as the API
// server has them. It is for people who ask: every endpoint is looked up.
func (s *Service) FindMismatches(nodes []*calculatorv1.NodeState) {
	snapshot := s.publisher.current.Load()
	for _, node := range nodes {
		node.EndpointMismatches = s.mismatches(node.GetName(), snapshot, node.GetReport())
	}
}

// mismatches returns the endpoints that a node's CNI plugin told of and that are
// not the pods that the API server has: a sandbox that somebody forgot, or an
// agent that says more than is true of its node.
func (s *Service) mismatches(nodeName string, snapshot *snapshot, report *dataplanev1.Report) []*calculatorv1.EndpointMismatch {
	if len(report.GetLocalEndpoints()) == 0 || snapshot == nil {
		return nil
	}
	v, ok := snapshot.view(nodeName)
	if !ok {
		return nil
	}
	var list []*calculatorv1.EndpointMismatch
	for _, local := range report.GetLocalEndpoints() {
		key := local.GetName().GetKey()
		if why := s.mismatch(nodeName, &v, key, local.GetUid()); why != "" {
			list = append(list, &calculatorv1.EndpointMismatch{Pod: key, Uid: local.GetUid(), Message: why})
		}
	}
	return list
}

// mismatch tells what the API server has instead of a pod, empty if it has that
// pod on that node.
func (s *Service) mismatch(nodeName string, v *view, key, uid string) string {
	e := v.lookup(name{dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT, key})
	if e == nil {
		if s.Pod == nil {
			return ""
		}
		pod, ok := s.Pod(key)
		switch {
		case !ok:
			return "there is no pod of this name on the node"
		case pod.Node != nodeName:
			return fmt.Sprintf("the pod was scheduled to node %s", pod.Node)
		case pod.UID != uid:
			return fmt.Sprintf("the pod of this name has UID %s", pod.UID)
		}
		return ""
	}
	resource, err := e.resource()
	if err != nil {
		return err.Error()
	}
	if now := resource.GetEndpoint().GetUid(); now != uid {
		return fmt.Sprintf("the pod of this name has UID %s", now)
	}
	return ""
}
