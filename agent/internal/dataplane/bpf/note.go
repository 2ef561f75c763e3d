// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/held"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

type fieldProblem struct{ field, message string }

func problemf(field string, index int, format string, args ...any) fieldProblem {
	return fieldProblem{fmt.Sprintf("%s[%d]", field, index), fmt.Sprintf(format, args...)}
}

// note takes in a changed resource.
func (p *Plane) note(name held.Name, d *delta) {
	resource, err := p.store.Get(name)
	if err != nil {
		p.errors.Set(name, dataplane.NewError(name, dataplane.ReasonUndecodable, "",
			err.Error()+"; what was programmed before stays"))
		return
	}
	if resource != nil && !known(name, resource) {
		p.log.Warn("resource of an unknown type", zap.Stringer("resource", name))
		p.errors.Set(name, dataplane.NewError(name, dataplane.ReasonUnknownType, "",
			"this agent does not know the resource's type or content; it is kept but not programmed"))
		return
	}
	switch name.Type {
	case dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG:
		p.noteConfig(name, resource, d)
	case dataplanev1.ResourceType_RESOURCE_TYPE_NODE:
		p.noteNode(name, resource, d)
	case dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT:
		p.noteEndpoint(name, resource, d)
	case dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE:
		p.errors.Set(name)
		d.services[serviceOf(name.Key)] = struct{}{}
	case dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE:
		p.errors.Set(name)
		d.services[name.Key] = struct{}{}
	case dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS:
		p.errors.Set(name) // nothing for the kernel; package discovery reads it
	default:
		p.errors.Set(name) // an unknown one was removed
	}
}

// known tells whether the content is of the type that the name says, and of one
// that this agent understands.
func known(name held.Name, r *dataplanev1.Resource) bool {
	var content dataplanev1.ResourceType
	switch r.GetContent().(type) {
	case *dataplanev1.Resource_NodeConfig:
		content = dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG
	case *dataplanev1.Resource_Node:
		content = dataplanev1.ResourceType_RESOURCE_TYPE_NODE
	case *dataplanev1.Resource_Endpoint:
		content = dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT
	case *dataplanev1.Resource_BackendSlice:
		content = dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE
	case *dataplanev1.Resource_Service:
		content = dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE
	case *dataplanev1.Resource_Calculators:
		content = dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS
	}
	return content == name.Type && content != dataplanev1.ResourceType_RESOURCE_TYPE_UNSPECIFIED
}

func (p *Plane) noteConfig(name held.Name, r *dataplanev1.Resource, d *delta) {
	if name.Key != p.options.Node {
		return // another node's; not ours to follow
	}
	d.topology = true
	p.config = r.GetNodeConfig()
	var list []*dataplanev1.ResourceError
	switch p.config.GetMode() {
	case dataplanev1.DataplaneMode_DATAPLANE_MODE_UNSPECIFIED, dataplanev1.DataplaneMode_DATAPLANE_MODE_BPF:
	default:
		list = append(list, dataplane.NewError(name, dataplane.ReasonUnsupported, "mode",
			fmt.Sprintf("this agent has no dataplane for mode %d; it stays in mode BPF", p.config.GetMode())))
	}
	if np := p.config.GetNodePorts(); np != nil {
		r := PortRange{uint16(min(np.GetFirst(), 65535)), uint16(min(np.GetLast(), 65535))}
		switch {
		case np.GetFirst() < 1 || np.GetLast() > 65535 || np.GetFirst() > np.GetLast():
			list = append(list, dataplane.NewError(name, dataplane.ReasonInvalid, "node_ports",
				fmt.Sprintf("%d-%d is no range of ports", np.GetFirst(), np.GetLast())))
		case p.options.SNATPorts.Overlaps(r):
			list = append(list, dataplane.NewError(name, dataplane.ReasonPortsOverlap, "node_ports",
				fmt.Sprintf("node ports %s overlap the source ports %s of translated connections, which may be "+
					"mistaken for each other; change --snat-ports of the agent", r, p.options.SNATPorts)))
		}
	}
	p.errors.Set(name, list...)
}

func (p *Plane) noteNode(name held.Name, r *dataplanev1.Resource, d *delta) {
	d.topology = true
	if r == nil {
		delete(p.cluster.nodes, name.Key)
		p.errors.Set(name)
		return
	}
	n, bad := nodeOf(r.GetNode())
	p.cluster.nodes[name.Key] = n
	p.errors.Set(name, invalid(name, bad)...)
}

func (p *Plane) noteEndpoint(name held.Name, r *dataplanev1.Resource, d *delta) {
	d.topology = true
	if r == nil {
		delete(p.cluster.endpoints, name.Key)
		p.errors.Set(name)
		return
	}
	var addresses []netip.Addr
	for _, raw := range r.GetEndpoint().GetAddresses() {
		if addr, ok := netip.AddrFromSlice(raw); ok {
			addresses = append(addresses, addr.Unmap())
		}
	}
	p.cluster.endpoints[name.Key] = told{uid: r.GetEndpoint().GetUid(), addresses: addresses}
}

func invalid(name held.Name, bad []fieldProblem) []*dataplanev1.ResourceError {
	var list []*dataplanev1.ResourceError
	for _, b := range bad {
		list = append(list, dataplane.NewError(name, dataplane.ReasonInvalid, b.field, b.message))
	}
	return list
}
