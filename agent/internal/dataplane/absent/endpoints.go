// SPDX-License-Identifier: Apache-2.0

package absent

import (
	"context"
	"fmt"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/endpoints"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// SetLocal has nothing to program.
func (p *Plane) SetLocal(context.Context, endpoints.Known) dataplane.Result { return p.result() }

// CalculatorUID knows nobody.
func (p *Plane) CalculatorUID(string) string { return "" }

// CalculatorKnows knows nobody.
func (p *Plane) CalculatorKnows(*endpoints.Ended) bool { return false }

// Endpoints refuses.
func (p *Plane) Endpoints() ([]dataplane.EndpointState, error) { return nil, p.refuse() }

// HasPrograms refuses.
func (p *Plane) HasPrograms(uint32) (bool, error) { return false, p.refuse() }

// EndFlows has none to end.
func (p *Plane) EndFlows([]netip.Addr) (int, error) { return 0, nil }

// EndpointService tells the CNI plugin why no pod can be added now. It answers so
// that the plugin tries again: a node that was mended goes on.
type EndpointService struct {
	agentv1.UnimplementedEndpointServiceServer

	// Plane knows why.
	Plane *Plane
}

func (s *EndpointService) wait() error {
	return status.Error(codes.Unavailable, fmt.Sprintf("this node cannot be programmed: %s", s.Plane.Problems()))
}

// AddEndpoint implements agentv1.EndpointServiceServer, as the others do.
func (s *EndpointService) AddEndpoint(context.Context, *agentv1.AddEndpointRequest) (*agentv1.AddEndpointResponse, error) {
	return nil, s.wait()
}

// DeleteEndpoint lets the plugin leave the deletion for later.
func (s *EndpointService) DeleteEndpoint(context.Context, *agentv1.DeleteEndpointRequest) (*agentv1.DeleteEndpointResponse, error) {
	return nil, s.wait()
}

// CheckEndpoint tells why.
func (s *EndpointService) CheckEndpoint(context.Context, *agentv1.CheckEndpointRequest) (*agentv1.CheckEndpointResponse, error) {
	return nil, s.wait()
}

// RetainEndpoints tells why.
func (s *EndpointService) RetainEndpoints(context.Context, *agentv1.RetainEndpointsRequest) (*agentv1.RetainEndpointsResponse, error) {
	return nil, s.wait()
}
