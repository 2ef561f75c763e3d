// SPDX-License-Identifier: Apache-2.0

// Package api implements CalculatorService, which answers questions about a
// calculator and its nodes.
package api

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace-project/millrace/calc/problem"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// Service implements CalculatorService.
type Service struct {
	calculatorv1.UnimplementedCalculatorServiceServer
	// Version and CalculatorID tell which calculator it is.
	Version, CalculatorID string
	// StartTime is when it started.
	StartTime time.Time
	// Source is what it reads.
	Source source.Source
	// Publisher has what it computed.
	Publisher *publish.Publisher
	// Sync has the streams.
	Sync *publish.Service
	// Trust tells what agents trust calculators by; nil if this one keeps
	// nothing of it.
	Trust func() *calculatorv1.Trust
	// Problems lists what is wrong with the source and its objects.
	Problems func() []problem.Problem
}

// GetStatus implements CalculatorService.
func (s *Service) GetStatus(context.Context, *calculatorv1.GetStatusRequest) (*calculatorv1.GetStatusResponse, error) {
	response := &calculatorv1.GetStatusResponse{
		Version:      s.Version,
		CalculatorId: s.CalculatorID,
		Epoch:        s.Source.Epoch(),
		Source:       s.Source.Name(),
		Synced:       s.Publisher.Synced(),
		Position:     &dataplanev1.Position{ResourceVersions: s.Publisher.Position()},
		Revision:     s.Publisher.Revision(),
		Resources:    s.Publisher.Counts(),
		StartTime:    timestamppb.New(s.StartTime),
	}
	if s.Trust != nil {
		response.Trust = s.Trust()
	}
	for _, one := range s.Problems() {
		response.Problems = append(response.Problems, &calculatorv1.Problem{
			Kind:      string(one.Object.Kind),
			Namespace: one.Object.Namespace,
			Name:      one.Object.Name,
			Field:     one.Field,
			Message:   one.Message,
		})
	}
	response.Problems = append(response.Problems, s.Sync.Problems()...)
	return response, nil
}

// ListNodes implements CalculatorService.
func (s *Service) ListNodes(context.Context, *calculatorv1.ListNodesRequest) (*calculatorv1.ListNodesResponse, error) {
	nodes := s.Sync.Nodes()
	s.Sync.FindMismatches(nodes)
	return &calculatorv1.ListNodesResponse{Nodes: nodes}, nil
}

// DumpNode implements CalculatorService.
func (s *Service) DumpNode(request *calculatorv1.DumpNodeRequest, stream grpc.ServerStreamingServer[calculatorv1.DumpNodeResponse]) error {
	if request.GetNodeName() == "" {
		return status.Error(codes.InvalidArgument, "field node_name: must not be empty")
	}
	include := func(kind dataplanev1.ResourceType) bool {
		return len(request.GetTypes()) == 0 || slices.Contains(request.GetTypes(), kind)
	}
	resources, err := s.Publisher.NodeResources(request.GetNodeName(), include)
	if errors.Is(err, publish.ErrUnknownNode) {
		return status.Errorf(codes.NotFound, "field node_name: the cluster has no node %q", request.GetNodeName())
	}
	if err != nil {
		return status.Errorf(codes.Internal, "reading what node %q is to hold: %v", request.GetNodeName(), err)
	}
	for _, resource := range resources {
		if err := stream.Send(&calculatorv1.DumpNodeResponse{Resource: resource}); err != nil {
			return err
		}
	}
	return nil
}
