// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"slices"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/endpoints"
	"github.com/millrace-project/millrace/bpf/layout"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// node is a node of the cluster as far as the dataplane needs it.
type node struct {
	// addresses are all of the node's, internal ones first.
	addresses []netip.Addr
	podCIDRs  []netip.Prefix
}

// nodeOf reads a Node. bad describes what is unusable of it.
func nodeOf(n *dataplanev1.Node) (result *node, bad []fieldProblem) {
	result = &node{}
	addresses := func(field string, raws [][]byte) {
		for i, raw := range raws {
			addr, ok := netip.AddrFromSlice(raw)
			if !ok {
				bad = append(bad, problemf(field, i, "address has %d bytes, not 4 or 16; it is left out", len(raw)))
				continue
			}
			if addr = addr.Unmap(); !slices.Contains(result.addresses, addr) {
				result.addresses = append(result.addresses, addr)
			}
		}
	}
	addresses("internal_addresses", n.GetInternalAddresses())
	addresses("external_addresses", n.GetExternalAddresses())
	for i, p := range n.GetPodCidrs() {
		addr, ok := netip.AddrFromSlice(p.GetAddress())
		if !ok || int(p.GetLength()) > addr.BitLen() {
			bad = append(bad, problemf("pod_cidrs", i, "prefix of %d bytes and length %d; it is left out",
				len(p.GetAddress()), p.GetLength()))
			continue
		}
		result.podCIDRs = append(result.podCIDRs, netip.PrefixFrom(addr, int(p.GetLength())).Masked())
	}
	return result, bad
}

// speaksFrom returns the address of a family that the node speaks from: the
// first, since internal addresses come first.
func (n *node) speaksFrom(f tables.Family) (netip.Addr, bool) {
	if n == nil {
		return netip.Addr{}, false
	}
	for _, addr := range n.addresses {
		if addr.Is4() == (f == tables.V4) {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// cluster is what is known of nodes and of this node's pods.
type cluster struct {
	self      string
	nodes     map[string]*node
	endpoints map[string]told
	// local is what the CNI plugin told, and merged everything together.
	local  endpoints.Known
	merged map[string]endpoint
}

// nodeAddresses returns the addresses of all nodes.
func (c *cluster) nodeAddresses() map[tables.Address]tables.Family {
	all := make(map[tables.Address]tables.Family, len(c.nodes)*2)
	for _, n := range c.nodes {
		for _, addr := range n.addresses {
			a, f := tables.FromAddr(addr)
			all[a] = f
		}
	}
	return all
}

func hostRoute(addr netip.Addr) tables.RouteKey {
	a, f := tables.FromAddr(addr)
	return tables.RouteKey{Addr: a, Bits: uint8(addr.BitLen()), Family: f}
}

// routes returns who owns which address. devices has the devices of this node's
// pods.
func (c *cluster) routes(devices map[string]uint32) map[tables.RouteKey]tables.Route {
	desired := make(map[tables.RouteKey]tables.Route, len(c.nodes)*2+len(c.merged))
	add := func(key tables.RouteKey, flags layout.RouteFlags, ifindex uint32) {
		// Where several claim a prefix all that they say holds.
		r := desired[key]
		r.Flags |= uint32(flags)
		if ifindex != 0 {
			r.Ifindex = ifindex
		}
		desired[key] = r
	}
	for name, n := range c.nodes {
		var local layout.RouteFlags
		if name == c.self {
			local = layout.RouteLocal
		}
		for _, prefix := range n.podCIDRs {
			a, f := tables.FromAddr(prefix.Addr())
			add(tables.RouteKey{Addr: a, Bits: uint8(prefix.Bits()), Family: f}, layout.RoutePod|local, 0)
		}
		for _, addr := range n.addresses {
			add(hostRoute(addr), layout.RouteNode|local, 0)
		}
	}
	for key, e := range c.merged {
		for _, addr := range e.addresses {
			add(hostRoute(addr), layout.RoutePod|layout.RouteLocal, devices[key])
		}
	}
	return desired
}
