// SPDX-License-Identifier: Apache-2.0

package api

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// ListEndpoints implements AgentService.
func (s *Server) ListEndpoints(r *agentv1.ListEndpointsRequest, out grpc.ServerStreamingServer[agentv1.ListEndpointsResponse]) error {
	states, err := s.Dataplane.Endpoints()
	if err != nil {
		return kernelError(err)
	}
	for _, state := range states {
		e := describeEndpoint(state)
		if r.GetNamespace() != "" && r.GetNamespace() != e.GetNamespace() || r.GetName() != "" && r.GetName() != e.GetName() {
			continue
		}
		if err := out.Send(e); err != nil {
			return err
		}
	}
	return nil
}

// describeEndpoint makes the answer of the API.
func describeEndpoint(s dataplane.EndpointState) *agentv1.ListEndpointsResponse {
	ns, name := s.Pod()
	r := &agentv1.ListEndpointsResponse{
		Namespace: ns, Name: name, Uid: s.UID, Device: s.Device, DeviceIndex: s.Index, DeviceBy: s.By, Problem: s.Problem,
	}
	for _, a := range s.Addresses {
		r.Addresses = append(r.Addresses, a.String())
	}
	if s.Calculator {
		r.Sources = append(r.Sources, "calculator")
	}
	if s.Local != nil {
		r.Sources = append(r.Sources, "cni")
		r.ContainerId, r.Interface, r.NetnsCookie = s.Local.Container, s.Local.Interface, s.Local.Cookie
		r.AddTime = timestamppb.New(s.Local.Added)
	}
	return r
}
