// SPDX-License-Identifier: Apache-2.0

// Package dataplane is what every way of forwarding has in common: it is told
// which held resources changed, makes the kernel follow, and says what could
// not be done. Implementations are in packages below it.
package dataplane

import (
	"context"
	"net/netip"
	"strings"

	"github.com/millrace-project/millrace/agent/internal/endpoints"
	"github.com/millrace-project/millrace/agent/internal/held"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Change tells which resources differ from what was applied last. Their values
// are in the store.
type Change struct {
	Names []held.Name
	// InSync tells that the store holds everything the node is to have: what the
	// kernel has beyond that is stale. Before, nothing is removed but what the
	// change itself removes.
	InSync bool
}

// Result is how things stand after a change.
type Result struct {
	// Errors are all present errors of resources, in the order of their names.
	Errors []*dataplanev1.ResourceError
	// Retry tells that another attempt may mend some of them.
	Retry bool
	// Report is what the node is to tell the calculators.
	Report *dataplanev1.Report
}

// EndpointState is a pod of this node with its device.
type EndpointState struct {
	// Key is "namespace/pod", and more for another interface of the same pod.
	Key string
	// UID and Addresses are the pod's.
	UID       string
	Addresses []netip.Addr
	// Calculator tells that calculators tell of it; Local is what the CNI plugin
	// told, nil if nothing.
	Calculator bool
	Local      *endpoints.Endpoint
	// Device and Index are its device, By how it was found.
	Device string
	Index  uint32
	By     string
	// Reason and Problem tell why it has no programs; empty if it has.
	Reason, Problem string
}

// Pod returns namespace and name of the pod.
func (s *EndpointState) Pod() (namespace, name string) {
	namespace, name, _ = strings.Cut(s.Key, "/")
	name, _, _ = strings.Cut(name, "/")
	return namespace, name
}

// Dataplane programs the kernel of one node. Calls that change it are made by
// one goroutine, all others by any.
type Dataplane interface {
	// Apply programs a change.
	Apply(ctx context.Context, change Change) Result
	// Retry attempts again what failed.
	Retry(ctx context.Context) Result
	// Refresh looks at the node's devices, addresses and routes anew.
	Refresh(ctx context.Context) Result
	// SetLocal takes in everything that the CNI plugin has told of the node's pods.
	SetLocal(ctx context.Context, known endpoints.Known) Result
	// CalculatorUID returns the UID by which calculators know a pod of this node,
	// empty if they do not.
	CalculatorUID(key string) string
	// CalculatorKnows tells whether calculators still tell of a pod that has ended.
	CalculatorKnows(ended *endpoints.Ended) bool
	// Endpoints lists the pods of this node, by key.
	Endpoints() ([]EndpointState, error)
	// HasPrograms tells whether a device has all programs of its role, by looking at
	// the kernel.
	HasPrograms(index uint32) (bool, error)
	// EndFlows ends all flows from and to addresses, which are nobody's any more,
	// and returns how many.
	EndFlows(addresses []netip.Addr) (int, error)
	// DevicesGone forgets devices that were deleted.
	DevicesGone(indexes ...uint32)
	// State tells what is attached.
	State() *agentv1.DataplaneState
	// Services calls visit with each held service as the kernel has it; empty
	// namespace or name select all.
	Services(namespace, name string, visit func(*agentv1.ListServicesResponse) error) error
	// Conntrack calls visit with each tracked flow.
	Conntrack(visit func(*agentv1.ListConntrackResponse) error) error
	// Affinities calls visit with each client that keeps a backend.
	Affinities(visit func(*agentv1.ListAffinitiesResponse) error) error
	// Maps lists the kernel's tables.
	Maps() ([]*agentv1.MapState, error)
	// DumpMap calls visit with each entry of a table; ErrNoMap if there is none
	// of that name.
	DumpMap(name string, visit func(*agentv1.DumpMapResponse) error) error
	// GrowMap replaces a table by one with room for more entries, while traffic
	// goes on, and returns how many fitted before. Errors: ErrNoMap, ErrFixedSize,
	// ErrNotLarger, ErrMoving, or the kernel's.
	GrowMap(ctx context.Context, name string, entries uint32) (before uint32, err error)
	// Diff calls visit with each difference between the store and the kernel. It
	// runs beside changes, and what must not by between, which runs a function
	// between two of them.
	Diff(between func(func()) error, visit func(*agentv1.DiffDesiredResponse) error) error
	// Repair removes the differences and tells how many are no more, and what
	// remains.
	Repair(ctx context.Context) (repaired int, remaining []*agentv1.DiffDesiredResponse, result Result, err error)
}
