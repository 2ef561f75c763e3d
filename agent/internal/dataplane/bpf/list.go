// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/millrace-project/millrace/agent/internal/conntrack"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/services"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/bpf/layout"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// kernelFrontends are the frontends as the kernel holds them, by number of the
// service port.
type kernelFrontends map[uint32][]tables.FrontendEntry

func (p *Plane) readFrontends() (kernelFrontends, error) {
	all := kernelFrontends{}
	for _, f := range tables.Families {
		err := p.tables.ReadFrontends(f, func(e tables.FrontendEntry) {
			all[e.Value.ServiceID] = append(all[e.Value.ServiceID], e)
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Services implements dataplane.Dataplane.
func (p *Plane) Services(namespace, name string, visit func(*agentv1.ListServicesResponse) error) error {
	frontends, err := p.readFrontends()
	if err != nil {
		return err
	}
	p.mu.Lock()
	ports := map[string]map[uint32]string{} // numbers of a service's ports
	for id, port := range p.services.Numbers() {
		if ports[port.Service] == nil {
			ports[port.Service] = map[uint32]string{}
		}
		ports[port.Service][id] = port.Port
	}
	p.mu.Unlock()
	for _, key := range p.store.Keys(dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE) {
		ns, n, _ := strings.Cut(key, "/")
		if namespace != "" && ns != namespace || name != "" && n != name {
			continue
		}
		response := &agentv1.ListServicesResponse{Namespace: ns, Name: n}
		nodes := p.nodesOfBackends(key)
		for id, port := range ports[key] {
			for _, e := range frontends[id] {
				f, err := p.describe(e, port, nodes)
				if err != nil {
					return err
				}
				response.Frontends = append(response.Frontends, f)
			}
		}
		slices.SortFunc(response.Frontends, func(a, b *agentv1.Frontend) int {
			return cmp.Or(cmp.Compare(a.GetKind(), b.GetKind()), cmp.Compare(a.GetAddress(), b.GetAddress()),
				cmp.Compare(a.GetPort(), b.GetPort()), cmp.Compare(a.GetProtocol(), b.GetProtocol()))
		})
		if err := visit(response); err != nil {
			return err
		}
	}
	return nil
}

// nodesOfBackends returns the node of each backend of a service.
func (p *Plane) nodesOfBackends(service string) map[string]string {
	nodes := map[string]string{}
	r, err := p.store.Get(held.Name{Type: dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, Key: service})
	if err != nil {
		return nodes
	}
	for chunk := range r.GetService().GetBackendSlices() {
		part, err := p.store.Get(sliceName(service, chunk))
		if err != nil {
			continue
		}
		for _, b := range part.GetBackendSlice().GetBackends() {
			if addr, family, ok := tables.FromSlice(b.GetAddress()); ok {
				nodes[addr.Addr(family).String()] = b.GetNode()
			}
		}
	}
	return nodes
}

func (p *Plane) describe(e tables.FrontendEntry, port string, nodes map[string]string) (*agentv1.Frontend, error) {
	f := &agentv1.Frontend{
		Kind:      services.KindOf(layout.FrontendFlags(e.Value.Flags)),
		Address:   e.Key.Addr.Addr(e.Key.Family).String(),
		Port:      uint32(e.Key.Port),
		Protocol:  dataplanev1.Protocol(e.Key.Proto),
		PortName:  port,
		ServiceId: e.Value.ServiceID,

		AffinitySeconds: e.Value.Affinity,
	}
	backends, err := p.readBackends(e)
	if err != nil {
		return nil, err
	}
	for _, b := range backends {
		address := b.Addr.Addr(e.Key.Family).String()
		f.Backends = append(f.Backends, &agentv1.FrontendBackend{
			Address: address, Port: uint32(b.Port), Node: nodes[address],
			Local: layout.BackendFlags(b.Flags)&layout.BackendLocal != 0,
		})
	}
	return f, nil
}

// readBackends reads what a frontend covers; nothing if that is outside of the
// array.
func (p *Plane) readBackends(e tables.FrontendEntry) ([]tables.Backend, error) {
	capacity := p.tables.BackendCapacity(e.Key.Family)
	if e.Value.Count > capacity || e.Value.First > capacity-e.Value.Count {
		return nil, nil
	}
	return p.tables.ReadBackends(e.Key.Family, e.Value.First, e.Value.Count)
}

// Conntrack implements dataplane.Dataplane.
func (p *Plane) Conntrack(visit func(*agentv1.ListConntrackResponse) error) error {
	p.mu.Lock()
	numbers := p.services.Numbers()
	p.mu.Unlock()
	return p.conntrack.ForEach(func(f conntrack.Flow) error {
		response := &agentv1.ListConntrackResponse{
			Protocol: dataplanev1.Protocol(f.Proto),
			Client:   f.Client.String(),
			Frontend: f.Frontend.String(),
			Backend:  f.Backend.String(),
			State:    "embryonic",
			Expires:  durationpb.New(f.Expires),
			Service:  numbers[f.ServiceID].Service,
			Family:   uint32(f.Family),
		}
		if f.Established {
			response.State = "established"
		}
		if f.Flags&layout.CtSNAT != 0 {
			response.Source = f.Source.String()
		}
		if f.Flags != 0 {
			response.Flags = strings.Split(f.Flags.String(), "|")
		}
		return visit(response)
	})
}

// Maps implements dataplane.Dataplane.
func (p *Plane) Maps() ([]*agentv1.MapState, error) { return p.kernel.Maps() }

// Fill returns how full the maps are whose fill is known without walking them,
// or by the last walk.
func (p *Plane) Fill() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	given, resting := p.ids.Len()
	fill := map[string]uint64{
		"ids":         uint64(given + resting),
		"affinity_v4": uint64(p.affinities.V4), "affinity_v6": uint64(p.affinities.V6),
	}
	for _, f := range tables.Families {
		frontends, backends := p.services.Fill(f)
		fill["frontends_"+f.String()] = uint64(frontends)
		fill["backends_"+f.String()] = uint64(backends)
		fill["routes_"+f.String()] = uint64(p.routes.Len(f))
	}
	return fill
}

// DumpMap implements dataplane.Dataplane.
func (p *Plane) DumpMap(name string, visit func(*agentv1.DumpMapResponse) error) error {
	return p.kernel.DumpMap(name, func(key, value string) error {
		return visit(&agentv1.DumpMapResponse{Key: key, Value: value})
	})
}

// describeFrontend tells a frontend and its backends in one line, for diffs.
func describeFrontend(v tables.Frontend, f tables.Family, backends []tables.Backend) string {
	var b strings.Builder
	fmt.Fprintf(&b, "service %d %s", v.ServiceID, layout.FrontendFlags(v.Flags))
	if v.Affinity > 0 {
		fmt.Fprintf(&b, " affinity %ds", v.Affinity)
	}
	b.WriteString(" ->")
	if len(backends) == 0 {
		b.WriteString(" nobody")
	}
	for _, backend := range backends {
		fmt.Fprintf(&b, " %s", backend.AddrPort(f))
		if backend.Flags != 0 {
			fmt.Fprintf(&b, "(%s)", layout.BackendFlags(backend.Flags))
		}
	}
	return b.String()
}

// hookOf returns the hook of a socket program's name: connect4 of sock_connect4.
func hookOf(program string) string { return strings.TrimPrefix(program, "sock_") }

func sortAttachments(list []*agentv1.Attachment) {
	slices.SortFunc(list, func(a, b *agentv1.Attachment) int {
		return cmp.Or(cmp.Compare(a.GetTarget(), b.GetTarget()), cmp.Compare(a.GetHook(), b.GetHook()))
	})
}

func sortMaps(list []namedMap) {
	slices.SortFunc(list, func(a, b namedMap) int { return cmp.Compare(a.name, b.name) })
}
