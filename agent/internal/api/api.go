// SPDX-License-Identifier: Apache-2.0

// Package api answers questions about the node: AgentService.
package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace-project/millrace/agent/internal/applier"
	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/syncclient"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Reasons in the ErrorInfo of errors.
const (
	ReasonNoSuchMap       = "NO_SUCH_MAP"
	ReasonInvalidArgument = "INVALID_FIELD"
	ReasonKernel          = "KERNEL_READ_FAILED"
	ReasonMapFixed        = "MAP_SIZE_FIXED"
	ReasonMapNotLarger    = "MAP_NOT_LARGER"
	ReasonMapMoving       = "MAP_STILL_GROWING"
	ReasonMapRefused      = "MAP_GROWTH_FAILED"
)

// Applier is what the API needs of the applier.
type Applier interface {
	Status() applier.Status
	Between(ctx context.Context, f func()) error
	Repair(ctx context.Context, f func(dataplane.Result) dataplane.Result) error
}

// Stream is what the API needs of the connection to calculators.
type Stream interface{ Status() syncclient.Status }

// Server implements AgentService.
type Server struct {
	agentv1.UnimplementedAgentServiceServer

	Node      string
	Version   string
	Started   time.Time
	Store     *held.Store
	Dataplane dataplane.Dataplane
	Applier   Applier
	Stream    Stream
	// Endpoints is told of pods by the CNI plugin; nil for nobody.
	Endpoints agentv1.EndpointServiceServer
	// CNI tells of the plugin's installation; nil if the agent installs none.
	CNI func() *agentv1.CNIState
	// Known adds what is known of calculators to a status.
	Known func(*agentv1.GetStatusResponse)
	// Problems are things wrong on the node that nobody else tells.
	Problems func() []string
}

// fail makes an error with a stable reason for programs.
func fail(code codes.Code, reason, format string, args ...any) error {
	return dataplane.Domain.Errorf(code, reason, format, args...)
}

// kernelError wraps a failed look at the kernel, but for errors of the stream
// that the answer goes out by.
func kernelError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return fail(codes.Internal, ReasonKernel, "read the kernel: %v", err)
}

// HeldCounts returns how many resources are held, by type name.
func HeldCounts(store *held.Store) map[string]uint64 {
	counts := map[string]uint64{}
	for t, n := range store.Counts() {
		counts[held.TypeName(t)] = uint64(n)
	}
	return counts
}

// GetStatus implements AgentService.
func (s *Server) GetStatus(context.Context, *agentv1.GetStatusRequest) (*agentv1.GetStatusResponse, error) {
	a, c := s.Applier.Status(), s.Stream.Status()
	response := &agentv1.GetStatusResponse{
		NodeName:  s.Node,
		Version:   s.Version,
		StartTime: timestamppb.New(s.Started),
		Calculator: &agentv1.CalculatorConnection{
			Address:            c.Address,
			CalculatorId:       c.CalculatorID,
			Connected:          c.Connected,
			InSync:             c.InSync,
			ReceivedRevision:   c.Received,
			ProgrammedRevision: a.Programmed,
			LastError:          c.LastError,
			Connects:           c.Connects,
			Epoch:              c.Epoch,
		},
		Dataplane: s.Dataplane.State(),
		Held:      HeldCounts(s.Store),
		Errors:    a.Errors,
		Problems:  slices.Concat(s.Problems(), a.Problems, c.Problems),
	}
	if s.CNI != nil {
		response.Cni = s.CNI()
	}
	s.Known(response)
	if !c.ConnectTime.IsZero() {
		response.Calculator.ConnectTime = timestamppb.New(c.ConnectTime)
	}
	if !c.Disconnected.IsZero() {
		response.Calculator.DisconnectTime = timestamppb.New(c.Disconnected)
	}
	if len(c.Position) > 0 {
		response.Calculator.Position = &dataplanev1.Position{ResourceVersions: c.Position}
	}
	if a.LastLatency > 0 {
		response.Calculator.LastLatency = durationpb.New(a.LastLatency)
	}
	if n := a.ErrorCount - len(a.Errors); n > 0 {
		response.Problems = append(response.Problems, fmt.Sprintf("%d more resources could not be programmed", n))
	}
	return response, nil
}

// ListServices implements AgentService.
func (s *Server) ListServices(r *agentv1.ListServicesRequest, out grpc.ServerStreamingServer[agentv1.ListServicesResponse]) error {
	return kernelError(s.Dataplane.Services(r.GetNamespace(), r.GetName(), out.Send))
}

// selection checks the fields by which flows and clients are selected.
func selection(r interface {
	GetAddress() string
	GetService() string
}) (address netip.Addr, err error) {
	if r.GetAddress() != "" {
		if address, err = netip.ParseAddr(r.GetAddress()); err != nil {
			return address, fail(codes.InvalidArgument, ReasonInvalidArgument, "field address: %q is no IP address", r.GetAddress())
		}
	}
	if r.GetService() != "" && strings.Count(r.GetService(), "/") != 1 {
		return address, fail(codes.InvalidArgument, ReasonInvalidArgument, "field service: %q is not of the form namespace/name", r.GetService())
	}
	return address.Unmap(), nil
}

// ListConntrack implements AgentService.
func (s *Server) ListConntrack(r *agentv1.ListConntrackRequest, out grpc.ServerStreamingServer[agentv1.ListConntrackResponse]) error {
	address, err := selection(r)
	if err != nil {
		return err
	}
	return kernelError(s.Dataplane.Conntrack(func(f *agentv1.ListConntrackResponse) error {
		if r.GetService() != "" && f.GetService() != r.GetService() || address.IsValid() && !touches(f, address) {
			return nil
		}
		return out.Send(f)
	}))
}

func touches(f *agentv1.ListConntrackResponse, address netip.Addr) bool {
	for _, end := range []string{f.GetClient(), f.GetFrontend(), f.GetBackend(), f.GetSource()} {
		if ap, err := netip.ParseAddrPort(end); err == nil && ap.Addr() == address {
			return true
		}
	}
	return false
}

// ListAffinities implements AgentService.
func (s *Server) ListAffinities(r *agentv1.ListAffinitiesRequest, out grpc.ServerStreamingServer[agentv1.ListAffinitiesResponse]) error {
	address, err := selection(r)
	if err != nil {
		return err
	}
	return kernelError(s.Dataplane.Affinities(func(c *agentv1.ListAffinitiesResponse) error {
		if r.GetService() != "" && c.GetService() != r.GetService() || address.IsValid() && !concerns(c, address) {
			return nil
		}
		return out.Send(c)
	}))
}

func concerns(c *agentv1.ListAffinitiesResponse, address netip.Addr) bool {
	if client, err := netip.ParseAddr(c.GetClient()); err == nil && client == address {
		return true
	}
	backend, err := netip.ParseAddrPort(c.GetBackend())
	return err == nil && backend.Addr() == address
}

// ListMaps implements AgentService.
func (s *Server) ListMaps(context.Context, *agentv1.ListMapsRequest) (*agentv1.ListMapsResponse, error) {
	maps, err := s.Dataplane.Maps()
	if err != nil {
		return nil, kernelError(err)
	}
	return &agentv1.ListMapsResponse{Maps: maps}, nil
}

// DumpMap implements AgentService.
func (s *Server) DumpMap(r *agentv1.DumpMapRequest, out grpc.ServerStreamingServer[agentv1.DumpMapResponse]) error {
	err := s.Dataplane.DumpMap(r.GetName(), out.Send)
	if errors.Is(err, dataplane.ErrNoMap) {
		return fail(codes.NotFound, ReasonNoSuchMap, "there is no map %q; ListMaps tells their names", r.GetName())
	}
	return kernelError(err)
}

// GrowMap implements AgentService.
func (s *Server) GrowMap(ctx context.Context, r *agentv1.GrowMapRequest) (*agentv1.GrowMapResponse, error) {
	if r.GetMaxEntries() == 0 {
		return nil, fail(codes.InvalidArgument, ReasonInvalidArgument, "field max_entries: must be more than 0")
	}
	before, err := s.Dataplane.GrowMap(ctx, r.GetName(), r.GetMaxEntries())
	switch {
	case err == nil:
	case errors.Is(err, dataplane.ErrNoMap):
		return nil, fail(codes.NotFound, ReasonNoSuchMap, "there is no map %q; ListMaps tells their names", r.GetName())
	case errors.Is(err, dataplane.ErrFixedSize):
		return nil, fail(codes.FailedPrecondition, ReasonMapFixed, "%v", err)
	case errors.Is(err, dataplane.ErrNotLarger):
		return nil, fail(codes.FailedPrecondition, ReasonMapNotLarger, "field max_entries: %d: %v", r.GetMaxEntries(), err)
	case errors.Is(err, dataplane.ErrMoving):
		return nil, fail(codes.Aborted, ReasonMapMoving, "%v; try again", err)
	default:
		return nil, fail(codes.ResourceExhausted, ReasonMapRefused, "%v", err)
	}
	return &agentv1.GrowMapResponse{PreviousMaxEntries: before}, nil
}

// DiffDesired implements AgentService.
func (s *Server) DiffDesired(_ *agentv1.DiffDesiredRequest, out grpc.ServerStreamingServer[agentv1.DiffDesiredResponse]) error {
	between := func(f func()) error { return s.Applier.Between(out.Context(), f) }
	return kernelError(s.Dataplane.Diff(between, out.Send))
}

// Repair implements AgentService.
func (s *Server) Repair(ctx context.Context, _ *agentv1.RepairRequest) (*agentv1.RepairResponse, error) {
	response := &agentv1.RepairResponse{}
	var failure error
	err := s.Applier.Repair(ctx, func(before dataplane.Result) dataplane.Result {
		repaired, remaining, after, err := s.Dataplane.Repair(ctx)
		if err != nil {
			failure = err
			return before
		}
		response.Repaired, response.Remaining = uint64(repaired), remaining
		return after
	})
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	if failure != nil {
		return nil, kernelError(failure)
	}
	return response, nil
}
