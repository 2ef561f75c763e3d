// SPDX-License-Identifier: Apache-2.0

// Package absent is the dataplane of a node that cannot be programmed: it says
// why to everybody who asks, and nothing else.
package absent

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/held"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Reason is the reason of every error.
const Reason = "NODE_NOT_SUITABLE"

// Plane implements dataplane.Dataplane.
type Plane struct {
	store *held.Store
	state *agentv1.DataplaneState

	mu  sync.Mutex
	why []string
}

var _ dataplane.Dataplane = (*Plane)(nil)

// New returns a dataplane of a node with the problems; state is what there is to
// tell of its kernel.
func New(store *held.Store, state *agentv1.DataplaneState, why []string) *Plane {
	return &Plane{store: store, state: state, why: why}
}

// Set replaces the problems.
func (p *Plane) Set(why []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.why = why
}

// Problems tells why the node cannot be programmed.
func (p *Plane) Problems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.why)
}

// result says that nothing of what is held is in the kernel.
func (p *Plane) result() dataplane.Result {
	problems := p.Problems()
	r := dataplane.Result{Report: &dataplanev1.Report{Problems: problems}}
	for _, name := range p.store.Names() {
		r.Errors = append(r.Errors, dataplane.NewError(name, Reason, "", fmt.Sprintf("this node cannot be programmed: %s", problems)))
	}
	return r
}

// Apply implements dataplane.Dataplane, as all others do.
func (p *Plane) Apply(context.Context, dataplane.Change) dataplane.Result { return p.result() }

// Retry has nothing to attempt.
func (p *Plane) Retry(context.Context) dataplane.Result { return p.result() }

// Refresh tells the problems anew.
func (p *Plane) Refresh(context.Context) dataplane.Result { return p.result() }

// DevicesGone has nothing to forget.
func (p *Plane) DevicesGone(...uint32) {}

// State tells of the kernel.
func (p *Plane) State() *agentv1.DataplaneState { return p.state }

func (p *Plane) refuse() error {
	return dataplane.Domain.Errorf(codes.FailedPrecondition, Reason, "this node cannot be programmed: %s", p.Problems())
}

// Services refuses.
func (p *Plane) Services(string, string, func(*agentv1.ListServicesResponse) error) error {
	return p.refuse()
}

// Conntrack refuses.
func (p *Plane) Conntrack(func(*agentv1.ListConntrackResponse) error) error { return p.refuse() }

// Affinities refuses.
func (p *Plane) Affinities(func(*agentv1.ListAffinitiesResponse) error) error { return p.refuse() }

// Maps refuses.
func (p *Plane) Maps() ([]*agentv1.MapState, error) { return nil, p.refuse() }

// DumpMap refuses.
func (p *Plane) DumpMap(string, func(*agentv1.DumpMapResponse) error) error { return p.refuse() }

// GrowMap refuses.
func (p *Plane) GrowMap(context.Context, string, uint32) (uint32, error) { return 0, p.refuse() }

// Diff refuses.
func (p *Plane) Diff(func(func()) error, func(*agentv1.DiffDesiredResponse) error) error {
	return p.refuse()
}

// Repair refuses.
func (p *Plane) Repair(context.Context) (int, []*agentv1.DiffDesiredResponse, dataplane.Result, error) {
	return 0, nil, p.result(), p.refuse()
}
