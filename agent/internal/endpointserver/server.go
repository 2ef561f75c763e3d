// SPDX-License-Identifier: Apache-2.0

// Package endpointserver is the agent's side of the CNI plugin: EndpointService.
// A call changes what is kept of endpoints, lets the kernel follow, and answers
// when it has.
package endpointserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/endpoints"
	"github.com/millrace-project/millrace/agent/internal/endpoints/deferred"
	"github.com/millrace-project/millrace/agent/internal/metrics"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// Reasons in the ErrorInfo of errors, beside those of package dataplane.
const (
	ReasonInvalidField      = "INVALID_FIELD"
	ReasonUnknownEndpoint   = "UNKNOWN_ENDPOINT"
	ReasonDifferentEndpoint = "DIFFERENT_ENDPOINT"
	ReasonKeep              = "KEEP_FAILED"
	ReasonKernel            = "KERNEL_FAILED"
)

// Applier changes the dataplane, one change at a time.
type Applier interface {
	SetLocal(ctx context.Context, known func() endpoints.Known) error
}

// Dataplane is what is asked of the dataplane.
type Dataplane interface {
	CalculatorUID(key string) string
	CalculatorKnows(ended *endpoints.Ended) bool
	Endpoints() ([]dataplane.EndpointState, error)
	HasPrograms(index uint32) (bool, error)
	EndFlows(addresses []netip.Addr) (int, error)
}

// Server implements EndpointService.
type Server struct {
	agentv1.UnimplementedEndpointServiceServer

	// Socket is the agent's, beside which deletions wait that came while it was
	// away.
	Socket    string
	Registry  *endpoints.Registry
	Applier   Applier
	Dataplane Dataplane
	Metrics   *metrics.Metrics
	Log       *zap.Logger

	// taking is held while deletions that waited are done: what comes later has to
	// see them done.
	taking sync.Mutex
}

func fail(code codes.Code, reason, format string, args ...any) error {
	return dataplane.Domain.Errorf(code, reason, format, args...)
}

// timed counts a call.
func (s *Server) timed(call string, started time.Time, err *error) {
	s.Metrics.EndpointCalls.WithLabelValues(call, status.Code(*err).String()).Observe(time.Since(started).Seconds())
}

// follow lets the kernel follow what is kept.
func (s *Server) follow(ctx context.Context) error {
	if err := s.Applier.SetLocal(ctx, s.Registry.Known); err != nil {
		return status.FromContextError(err).Err()
	}
	return nil
}

// undoTime is how long a call that failed may take to leave nothing behind.
const undoTime = 10 * time.Second

// AddEndpoint implements EndpointService.
func (s *Server) AddEndpoint(ctx context.Context, r *agentv1.AddEndpointRequest) (_ *agentv1.AddEndpointResponse, err error) {
	defer s.timed("add", time.Now(), &err)
	e, err := endpointOf(r)
	if err != nil {
		return nil, err
	}
	// What was left undone may have to do with the addresses that are given now.
	if err := s.DoDeferred(ctx); err != nil {
		return nil, fail(codes.Internal, ReasonKernel, "%v", err)
	}
	if uid := s.Dataplane.CalculatorUID(e.Key()); uid != e.UID {
		e.Replaces = uid
	}
	e.Added = time.Now().UTC()
	state, err := s.add(ctx, e)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		if failure := errors.Join(s.Registry.Remove(e.Attachment), s.follow(undo)); failure != nil {
			s.Log.Error("undo a failed addition of an endpoint", zap.String("pod", e.Key()), zap.Error(failure))
		}
		return nil, err
	}
	s.Log.Debug("endpoint added", zap.String("pod", e.Key()), zap.String("device", state.Device))
	return &agentv1.AddEndpointResponse{Device: state.Device}, nil
}

func (s *Server) add(ctx context.Context, e endpoints.Endpoint) (dataplane.EndpointState, error) {
	for {
		if err := s.Registry.Put(e); err != nil {
			return dataplane.EndpointState{}, fail(codes.Internal, ReasonKeep, "%v", err)
		}
		if err := s.follow(ctx); err != nil {
			return dataplane.EndpointState{}, err
		}
		state, err := s.find(e.Attachment,
			"pod "+e.Key()+": calculators know a newer pod of this name, or another sandbox of it was added meanwhile")
		switch {
		case err != nil:
			return state, err
		case state.Problem != "":
			return state, fail(codes.FailedPrecondition, state.Reason,
				"the packets of pod %s cannot be caught: %s", e.Key(), state.Problem)
		case e.Index == 0 && state.Index != 0:
			// Found by an address: kept, so that it is known when it goes.
			e.Device, e.Index = state.Device, state.Index
			continue
		}
		return state, nil
	}
}

// find returns how the dataplane sees an attachment; why is told if it does not.
func (s *Server) find(a endpoints.Attachment, why string) (dataplane.EndpointState, error) {
	states, err := s.Dataplane.Endpoints()
	if err != nil {
		return dataplane.EndpointState{}, fail(codes.Internal, ReasonKernel, "%v", err)
	}
	for _, state := range states {
		if state.Local != nil && state.Local.Attachment == a {
			return state, nil
		}
	}
	return dataplane.EndpointState{}, fail(codes.FailedPrecondition, ReasonDifferentEndpoint, "%s", why)
}

// DeleteEndpoint implements EndpointService.
func (s *Server) DeleteEndpoint(ctx context.Context, r *agentv1.DeleteEndpointRequest) (_ *agentv1.DeleteEndpointResponse, err error) {
	defer s.timed("delete", time.Now(), &err)
	if err := s.DoDeferred(ctx); err != nil {
		return nil, fail(codes.Internal, ReasonKernel, "%v", err)
	}
	return s.delete(ctx, r)
}

func (s *Server) delete(ctx context.Context, r *agentv1.DeleteEndpointRequest) (*agentv1.DeleteEndpointResponse, error) {
	attachment, err := attachmentOf(r.GetAttachment())
	if err != nil {
		return nil, err
	}
	addresses, err := addressesOf(r.GetAddresses())
	if err != nil {
		return nil, err
	}
	e, known := s.Registry.Get(attachment)
	if !known {
		e = endpoints.Endpoint{Attachment: attachment, Namespace: r.GetPodNamespace(), Name: r.GetPodName(), UID: r.GetPodUid()}
	}
	for _, addr := range addresses {
		if !slices.Contains(e.Addresses, addr) {
			e.Addresses = append(slices.Clip(e.Addresses), addr)
		}
	}
	flows, err := s.end(ctx, e)
	if err != nil {
		return nil, err
	}
	s.Log.Debug("endpoint deleted", zap.Stringer("attachment", attachment), zap.Bool("known", known), zap.Int("flows", flows))
	return &agentv1.DeleteEndpointResponse{Known: known, Flows: uint32(flows)}, nil
}

// end takes an endpoint, which may be unknown, out of everything.
func (s *Server) end(ctx context.Context, e endpoints.Endpoint) (flows int, err error) {
	if err := s.Registry.Remove(e.Attachment); err != nil {
		return 0, fail(codes.Internal, ReasonKeep, "%v", err)
	}
	// Calculators still tell of it: for them the pod ends later.
	ended := endpoints.Ended{Key: e.Key(), UID: e.UID, Addresses: e.Addresses}
	if e.UID != "" && !s.hasPod(e.Key(), e.UID) && s.Dataplane.CalculatorKnows(&ended) {
		if err := s.Registry.End(ended); err != nil {
			s.Log.Error("keep that a pod has ended", zap.String("pod", e.Key()), zap.Error(err))
		}
	}
	if err := s.Registry.ForgetEnded(s.Dataplane.CalculatorKnows); err != nil {
		s.Log.Error("forget pods that have ended", zap.Error(err))
	}
	if err := s.follow(ctx); err != nil {
		return 0, err
	}
	addresses, err := s.nobodys(e.Addresses)
	if err == nil {
		flows, err = s.Dataplane.EndFlows(addresses)
	}
	if err != nil {
		return flows, fail(codes.Internal, ReasonKernel, "end the flows of %s: %v", e.Attachment, err)
	}
	return flows, nil
}

// hasPod tells whether the plugin told of another interface of the pod.
func (s *Server) hasPod(key, uid string) bool {
	return slices.ContainsFunc(s.Registry.Known().Endpoints, func(e endpoints.Endpoint) bool { return e.Key() == key && e.UID == uid })
}

// nobodys returns those of the addresses that no endpoint has: container runtimes
// delete what is long gone again, when its addresses may be another's.
func (s *Server) nobodys(addresses []netip.Addr) ([]netip.Addr, error) {
	states, err := s.Dataplane.Endpoints()
	return slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool {
		return slices.ContainsFunc(states, func(state dataplane.EndpointState) bool { return slices.Contains(state.Addresses, a) })
	}), err
}

// DoDeferred does the deletions that wait because the agent was away.
func (s *Server) DoDeferred(ctx context.Context) error {
	if s.Socket == "" {
		return nil
	}
	s.taking.Lock()
	defer s.taking.Unlock()
	return deferred.Take(s.Socket, func(r *agentv1.DeleteEndpointRequest) error {
		_, err := s.delete(ctx, r)
		if status.Code(err) == codes.InvalidArgument {
			s.Log.Error("a deletion that waited is dropped", zap.Error(err))
			return nil
		}
		return err
	})
}

// DevicesGone ends the endpoints of devices that were deleted and that nobody
// told us to delete.
func (s *Server) DevicesGone(ctx context.Context, indexes ...uint32) {
	for _, e := range s.Registry.Known().Endpoints {
		if !slices.Contains(indexes, e.Index) || deviceExists(e) {
			continue
		}
		if _, err := s.end(ctx, e); err != nil {
			s.Log.Error("end the endpoint of a device that is gone", zap.String("pod", e.Key()), zap.Error(err))
			continue
		}
		s.Log.Info("an endpoint's device is gone, the CNI plugin was not asked to delete it", zap.String("pod", e.Key()), zap.String("device", e.Device))
	}
}

func deviceExists(e endpoints.Endpoint) bool {
	i, err := net.InterfaceByIndex(int(e.Index))
	return err == nil && i.Name == e.Device
}

// Missed ends the endpoints whose devices went while the agent was away, and does
// the deletions that wait.
func (s *Server) Missed(ctx context.Context) {
	var gone []uint32
	for _, e := range s.Registry.Known().Endpoints {
		if e.Index != 0 && !deviceExists(e) {
			gone = append(gone, e.Index)
		}
	}
	// First what was asked for, so that the log tells only of the rest.
	if err := s.DoDeferred(ctx); err != nil && ctx.Err() == nil {
		s.Log.Error("do the deletions that waited", zap.Error(err))
	}
	s.DevicesGone(ctx, gone...)
}

// RetainEndpoints implements EndpointService.
func (s *Server) RetainEndpoints(ctx context.Context, r *agentv1.RetainEndpointsRequest) (_ *agentv1.RetainEndpointsResponse, err error) {
	defer s.timed("retain", time.Now(), &err)
	if r.GetNetwork() == "" {
		return nil, fail(codes.InvalidArgument, ReasonInvalidField, "field network: must not be empty")
	}
	stay := map[endpoints.Attachment]bool{}
	for _, a := range r.GetAttachments() {
		stay[endpoints.Attachment{Network: r.GetNetwork(), Container: a.GetContainerId(), Interface: a.GetInterface()}] = true
	}
	response := &agentv1.RetainEndpointsResponse{}
	for _, e := range s.Registry.Known().Endpoints {
		if e.Network != r.GetNetwork() || stay[e.Attachment] {
			continue
		}
		if _, err := s.end(ctx, e); err != nil {
			return nil, err
		}
		response.Deleted = append(response.Deleted, &agentv1.CNIAttachment{
			Network: e.Network, ContainerId: e.Container, Interface: e.Interface,
		})
	}
	return response, nil
}

// CheckEndpoint implements EndpointService.
func (s *Server) CheckEndpoint(_ context.Context, r *agentv1.CheckEndpointRequest) (_ *agentv1.CheckEndpointResponse, err error) {
	defer s.timed("check", time.Now(), &err)
	want, err := endpointOf(r.GetEndpoint())
	if err != nil {
		return nil, err
	}
	have, ok := s.Registry.Get(want.Attachment)
	if !ok {
		return nil, fail(codes.NotFound, ReasonUnknownEndpoint, "the agent knows no %s", want.Attachment)
	}
	if why := difference(&have, &want); why != "" {
		return nil, fail(codes.FailedPrecondition, ReasonDifferentEndpoint, "%s is known with %s", want.Attachment, why)
	}
	state, err := s.find(want.Attachment, "calculators know a newer pod than "+have.Key())
	if err != nil {
		return nil, err
	}
	if state.Problem == "" {
		whole, err := s.Dataplane.HasPrograms(state.Index)
		if err != nil {
			return nil, fail(codes.Internal, ReasonKernel, "%v", err)
		}
		if !whole {
			state.Reason, state.Problem = dataplane.ReasonAttach, "somebody removed the programs of device "+state.Device
		}
	}
	if state.Problem != "" {
		return nil, fail(codes.FailedPrecondition, state.Reason, "the packets of pod %s are not caught: %s", have.Key(), state.Problem)
	}
	return &agentv1.CheckEndpointResponse{}, nil
}
