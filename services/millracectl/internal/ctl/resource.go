// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"fmt"
	"strings"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// content puts what a resource says into one line.
func content(r *dataplanev1.Resource) string {
	switch c := r.GetContent().(type) {
	case *dataplanev1.Resource_NodeConfig:
		return nodeConfigLine(c.NodeConfig)
	case *dataplanev1.Resource_Node:
		return nodeLine(c.Node)
	case *dataplanev1.Resource_Endpoint:
		return fmt.Sprintf("addresses %s uid %s", addresses(c.Endpoint.GetAddresses()), c.Endpoint.GetUid())
	case *dataplanev1.Resource_BackendSlice:
		return backendSliceLine(c.BackendSlice)
	case *dataplanev1.Resource_Service:
		return serviceLine(c.Service)
	case *dataplanev1.Resource_Calculators:
		return calculatorsLine(c.Calculators)
	default:
		return "a type this millracectl does not know"
	}
}

func nodeConfigLine(c *dataplanev1.NodeConfig) string {
	return fmt.Sprintf("mode %s, node ports %d-%d", mode(c.GetMode()), c.GetNodePorts().GetFirst(), c.GetNodePorts().GetLast())
}

func nodeLine(n *dataplanev1.Node) string {
	parts := []string{"internal " + orNone(addresses(n.GetInternalAddresses()))}
	if len(n.GetExternalAddresses()) > 0 {
		parts = append(parts, "external "+addresses(n.GetExternalAddresses()))
	}
	var cidrs []string
	for _, p := range n.GetPodCidrs() {
		cidrs = append(cidrs, fmt.Sprintf("%s/%d", address(p.GetAddress()), p.GetLength()))
	}
	if len(cidrs) > 0 {
		parts = append(parts, "pods "+strings.Join(cidrs, ","))
	}
	if n.GetZone() != "" {
		parts = append(parts, "zone "+n.GetZone())
	}
	return strings.Join(parts, ", ")
}

func serviceLine(s *dataplanev1.Service) string {
	parts := []string{"cluster " + orNone(addresses(s.GetClusterIps()))}
	for _, shared := range []struct {
		kind string
		list []*dataplanev1.ServiceAddress
	}{{"external", s.GetExternalIps()}, {"load balancer", s.GetLoadBalancerIps()}} {
		var texts []string
		for _, a := range shared.list {
			texts = append(texts, serviceAddress(s, a))
		}
		if len(texts) > 0 {
			parts = append(parts, shared.kind+" "+strings.Join(texts, ","))
		}
	}
	var ports []string
	for _, p := range s.GetPorts() {
		text := fmt.Sprintf("%d/%s", p.GetPort(), protocol(p.GetProtocol()))
		if p.GetName() != "" {
			text = p.GetName() + ":" + text
		}
		if p.GetNodePort() != 0 {
			text += fmt.Sprintf(" (node port %d)", p.GetNodePort())
		}
		ports = append(ports, text)
	}
	return strings.Join(append(parts, "ports "+orNone(strings.Join(ports, ",")),
		plural(int(s.GetBackendSlices()), "backend slice")), ", ")
}

// serviceAddress prints an address, and its ports if they are not all of the
// service's.
func serviceAddress(s *dataplanev1.Service, a *dataplanev1.ServiceAddress) string {
	text := address(a.GetAddress())
	if len(a.GetPorts()) == len(s.GetPorts()) {
		return text
	}
	var ports []string
	for _, i := range a.GetPorts() {
		if int(i) < len(s.GetPorts()) {
			ports = append(ports, fmt.Sprint(s.GetPorts()[i].GetPort()))
		}
	}
	return text + " for port " + orNone(strings.Join(ports, "+"))
}

func backendSliceLine(b *dataplanev1.BackendSlice) string {
	texts := make([]string, 0, len(b.GetBackends()))
	for _, backend := range b.GetBackends() {
		text := address(backend.GetAddress()) + " " + backendPorts(b, backend.GetPortSet())
		if backend.GetNode() != "" {
			text += " on " + backend.GetNode()
		}
		texts = append(texts, text+" "+conditions(backend))
	}
	return orNone(strings.Join(texts, "; "))
}

func backendPorts(b *dataplanev1.BackendSlice, set uint32) string {
	if int(set) >= len(b.GetPortSets()) {
		return fmt.Sprintf("port set %d, which is missing", set)
	}
	var texts []string
	for _, p := range b.GetPortSets()[set].GetPorts() {
		text := fmt.Sprintf("%d/%s", p.GetPort(), protocol(p.GetProtocol()))
		if p.GetName() != "" {
			text = p.GetName() + ":" + text
		}
		texts = append(texts, text)
	}
	return orNone(strings.Join(texts, ","))
}

func conditions(b *dataplanev1.Backend) string {
	var words []string
	if b.GetReady() {
		words = append(words, "ready")
	} else {
		words = append(words, "not ready")
		if b.GetServing() {
			words = append(words, "serving")
		}
	}
	if b.GetTerminating() {
		words = append(words, "terminating")
	}
	return strings.Join(words, ",")
}
