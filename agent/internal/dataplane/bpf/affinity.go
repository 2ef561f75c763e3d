// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/millrace-project/millrace/agent/internal/affinity"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// affinityPace is how often clients are looked at that keep their backends.
const affinityPace = 10 * time.Second

// Affinities implements dataplane.Dataplane.
func (p *Plane) Affinities(visit func(*agentv1.ListAffinitiesResponse) error) error {
	p.mu.Lock()
	ports, all := p.services.Affinities(), p.services.Numbers()
	p.mu.Unlock()
	return p.kernel.Affinity().ForEach(func(c affinity.Client) error {
		response := &agentv1.ListAffinitiesResponse{
			Family: uint32(c.Family), NetnsCookie: c.NetnsCookie, Host: c.NetnsCookie != 0 && c.NetnsCookie == p.options.HostNetnsCookie,
			Service: all[c.ServiceID].Service, PortName: all[c.ServiceID].Port,
			Backend: c.Backend.String(), Idle: durationpb.New(c.Idle),
		}
		if c.Addr.IsValid() {
			response.Client = c.Addr.String()
		}
		if port, ok := ports[c.ServiceID]; ok {
			addr, family := tables.FromAddr(c.Backend.Addr())
			response.Usable = port.Usable(family, addr, c.Backend.Port())
			response.Expires = durationpb.New(max(0, port.Lasts()-c.Idle))
		}
		return visit(response)
	})
}

// ForgetAffinities forgets clients that keep no backend any more, until ctx ends.
func (p *Plane) ForgetAffinities(ctx context.Context, failed func(error)) {
	ticker := time.NewTicker(affinityPace)
	defer ticker.Stop()
	for {
		if err := p.forgetAffinities(); err != nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// forgetAffinities makes one pass. Of numbers that nobody has, owners may turn
// up until the node is in sync.
func (p *Plane) forgetAffinities() error {
	left, err := p.kernel.Affinity().Forget(func() func(affinity.Client) bool {
		p.mu.Lock()
		ports, inSync := p.services.Affinities(), p.inSync
		p.mu.Unlock()
		return func(c affinity.Client) bool {
			port, ok := ports[c.ServiceID]
			if !ok {
				return inSync
			}
			return c.Idle >= port.Lasts()
		}
	})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.affinities = left
	return nil
}
