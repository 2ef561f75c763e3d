// SPDX-License-Identifier: Apache-2.0

package services

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/bpf/layout"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Reasons of a ResourceError that come from here.
const (
	ReasonInvalid      = "INVALID"
	ReasonAddressInUse = "ADDRESS_IN_USE"
	ReasonMapFull      = "MAP_FULL"
	ReasonMapWrite     = "MAP_WRITE"
)

// Problem is why a part of a service cannot be programmed.
type Problem struct {
	Reason  string
	Field   string
	Message string
	// Slice tells that the problem is in the service's slice of that chunk.
	Slice *uint32
}

// NodePortAddress is an address at which this node answers for node ports.
type NodePortAddress struct {
	Addr     tables.Address
	Family   tables.Family
	HostOnly bool
}

// Env is what the frontends and backends of a service depend on beside the
// service itself.
type Env struct {
	// Node is the name of this node.
	Node string
	// NodeAddresses are the addresses of all nodes.
	NodeAddresses map[tables.Address]tables.Family
	// NodePortAddresses are where node ports are served.
	NodePortAddresses []NodePortAddress
}

// Claim is a frontend that a service port wants.
type Claim struct {
	Key   tables.FrontendKey
	Flags layout.FrontendFlags
}

// Port is what a service port is to look like in the kernel.
type Port struct {
	Name   string
	Proto  uint8
	Number uint16
	// Index is the port's place in its service.
	Index  int
	Claims []Claim
	// Affinity is for how many seconds a client keeps its backend, 0 for not at
	// all.
	Affinity uint32
	// Backends get new connections, by family, sorted.
	Backends [2][]tables.Backend
	// Draining do not, but still answer those they have.
	Draining [2][]tables.Backend
}

// portName identifies a port within its service.
type portName struct {
	name  string
	proto uint8
}

// Desire computes what a service is to look like. Everything of it that is
// usable is in the result, also if there are problems.
func Desire(service *dataplanev1.Service, parts []*dataplanev1.BackendSlice, env *Env) ([]Port, []Problem) {
	d := &desire{env: env, service: service}
	ports := make([]Port, 0, len(service.GetPorts()))
	// index leads from the service's port to its place in ports, -1 if unusable.
	index := make([]int, len(service.GetPorts()))
	names := map[portName]int{}
	affinity := d.affinity()
	for i, p := range service.GetPorts() {
		index[i] = -1
		field := fmt.Sprintf("ports[%d]", i)
		if !d.validPort(field, p) {
			continue
		}
		name := portName{p.GetName(), uint8(p.GetProtocol())}
		if _, twice := names[name]; twice {
			d.problem(field, "port %q %s appears twice; the first is used", p.GetName(), tables.ProtoName(name.proto))
			continue
		}
		index[i] = len(ports)
		names[name] = len(ports)
		ports = append(ports, Port{Name: name.name, Proto: name.proto, Number: uint16(p.GetPort()), Index: i, Affinity: affinity})
	}
	d.claims(ports, index)
	d.backends(ports, names, parts)
	return ports, d.problems
}

type desire struct {
	env      *Env
	service  *dataplanev1.Service
	problems []Problem
}

func (d *desire) problem(field, format string, args ...any) {
	d.problems = append(d.problems, Problem{Reason: ReasonInvalid, Field: field, Message: fmt.Sprintf(format, args...)})
}

// maxAffinity is a day, as in the protocol.
const maxAffinity = 86400

func (d *desire) affinity() uint32 {
	a := d.service.GetSessionAffinity()
	if a == nil {
		return 0
	}
	if s := a.GetTimeoutSeconds(); s < 1 || s > maxAffinity {
		d.problem("session_affinity.timeout_seconds", "%d seconds are not between 1 and %d; every connection chooses a backend anew", s, maxAffinity)
		return 0
	}
	return a.GetTimeoutSeconds()
}

func validPortNumber(p uint32) bool { return p >= 1 && p <= 65535 }

func (d *desire) validPort(field string, p *dataplanev1.ServicePort) bool {
	switch p.GetProtocol() {
	case dataplanev1.Protocol_PROTOCOL_TCP, dataplanev1.Protocol_PROTOCOL_UDP:
	default:
		d.problem(field+".protocol", "protocol %d is not known; the port is not served", p.GetProtocol())
		return false
	}
	if !validPortNumber(p.GetPort()) {
		d.problem(field+".port", "port %d is not between 1 and 65535; the port is not served", p.GetPort())
		return false
	}
	if p.GetNodePort() > 65535 {
		d.problem(field+".node_port", "node port %d is not between 1 and 65535; the node port is not served", p.GetNodePort())
	}
	return true
}

func (d *desire) address(field string, raw []byte) (tables.Address, tables.Family, bool) {
	addr, family, ok := tables.FromSlice(raw)
	if !ok {
		d.problem(field, "address has %d bytes, not 4 or 16; it is not served", len(raw))
	}
	return addr, family, ok
}

func (p *Port) claim(addr tables.Address, family tables.Family, port uint16, flags layout.FrontendFlags) {
	key := tables.FrontendKey{Addr: addr, Port: port, Proto: p.Proto, Family: family}
	for i := range p.Claims {
		if p.Claims[i].Key == key {
			p.Claims[i].Flags |= flags
			return
		}
	}
	p.Claims = append(p.Claims, Claim{Key: key, Flags: flags})
}

func (d *desire) claims(ports []Port, index []int) {
	for i, raw := range d.service.GetClusterIps() {
		addr, family, ok := d.address(fmt.Sprintf("cluster_ips[%d]", i), raw)
		if !ok {
			continue
		}
		for j := range ports {
			ports[j].claim(addr, family, ports[j].Number, layout.FrontendClusterIP)
		}
	}
	d.addressClaims("external_ips", d.service.GetExternalIps(), layout.FrontendExternalIP, ports, index)
	d.addressClaims("load_balancer_ips", d.service.GetLoadBalancerIps(), layout.FrontendLoadBalancer, ports, index)
	for i, p := range d.service.GetPorts() {
		if index[i] < 0 || !validPortNumber(p.GetNodePort()) {
			continue
		}
		for _, a := range d.env.NodePortAddresses {
			flags := layout.FrontendNodePort
			if a.HostOnly {
				flags |= layout.FrontendHostOnly
			}
			if !d.serves(a.Family) {
				continue
			}
			ports[index[i]].claim(a.Addr, a.Family, uint16(p.GetNodePort()), flags)
		}
	}
}

// serves tells whether the service has the family at all: a node port exists in
// the families of the cluster IPs.
func (d *desire) serves(f tables.Family) bool {
	for _, raw := range d.service.GetClusterIps() {
		if _, family, ok := tables.FromSlice(raw); ok && family == f {
			return true
		}
	}
	return len(d.service.GetClusterIps()) == 0
}

func (d *desire) addressClaims(field string, addresses []*dataplanev1.ServiceAddress, flags layout.FrontendFlags,
	ports []Port, index []int,
) {
	for i, a := range addresses {
		addr, family, ok := d.address(fmt.Sprintf("%s[%d].address", field, i), a.GetAddress())
		if !ok {
			continue
		}
		for k, n := range a.GetPorts() {
			if int(n) >= len(index) {
				d.problem(fmt.Sprintf("%s[%d].ports[%d]", field, i, k), "there is no port %d; it is left out", n)
				continue
			}
			if j := index[n]; j >= 0 {
				ports[j].claim(addr, family, ports[j].Number, flags)
			}
		}
	}
}

// candidates collects the backends of one port and family by condition.
type candidates struct{ ready, draining, serving []tables.Backend }

func (d *desire) backends(ports []Port, names map[portName]int, parts []*dataplanev1.BackendSlice) {
	found := make([][2]candidates, len(ports))
	for _, part := range parts {
		for i, b := range part.GetBackends() {
			d.backend(found, names, part, i, b)
		}
	}
	for i := range ports {
		for _, f := range tables.Families {
			c := &found[i][f]
			// Like kube-proxy: those that shut down but still answer are used
			// only when no other is left.
			usable, rest := c.ready, c.serving
			if len(usable) == 0 {
				usable = c.draining
			}
			ports[i].Backends[f] = sorted(usable)
			ports[i].Draining[f] = without(sorted(rest), ports[i].Backends[f])
		}
	}
}

func (d *desire) backend(found [][2]candidates, names map[portName]int, part *dataplanev1.BackendSlice, i int,
	b *dataplanev1.Backend,
) {
	bad := func(field, format string, args ...any) {
		chunk := part.GetChunk()
		d.problems = append(d.problems, Problem{
			Reason: ReasonInvalid, Field: fmt.Sprintf("backends[%d].%s", i, field),
			Message: fmt.Sprintf(format, args...), Slice: &chunk,
		})
	}
	addr, family, ok := tables.FromSlice(b.GetAddress())
	if !ok {
		bad("address", "address has %d bytes, not 4 or 16; the backend is not used", len(b.GetAddress()))
		return
	}
	if int(b.GetPortSet()) >= len(part.GetPortSets()) {
		bad("port_set", "there is no port set %d; the backend is not used", b.GetPortSet())
		return
	}
	if !b.GetReady() && !b.GetServing() {
		return
	}
	var flags layout.BackendFlags
	if b.GetNode() != "" && b.GetNode() == d.env.Node {
		flags |= layout.BackendLocal
	}
	if f, ok := d.env.NodeAddresses[addr]; ok && f == family {
		flags |= layout.BackendHostNetwork
	}
	for _, t := range part.GetPortSets()[b.GetPortSet()].GetPorts() {
		j, ok := names[portName{t.GetName(), uint8(t.GetProtocol())}]
		if !ok {
			continue
		}
		if !validPortNumber(t.GetPort()) {
			bad("port_set", "port %d is not between 1 and 65535; the backend is not used for it", t.GetPort())
			continue
		}
		backend := tables.Backend{Addr: addr, Port: uint16(t.GetPort()), Flags: uint16(flags)}
		c := &found[j][family]
		if b.GetReady() {
			c.ready = append(c.ready, backend)
		}
		if b.GetServing() {
			c.serving = append(c.serving, backend)
			if b.GetTerminating() {
				c.draining = append(c.draining, backend)
			}
		}
	}
}

// compareEnds orders backends as the programs do that search for one.
func compareEnds(a, b tables.Backend) int {
	return cmp.Or(bytes.Compare(a.Addr[:], b.Addr[:]), cmp.Compare(a.Port, b.Port))
}

func compareBackends(a, b tables.Backend) int {
	return cmp.Or(compareEnds(a, b), cmp.Compare(a.Flags, b.Flags))
}

// sorted sorts and drops duplicates of address and port. What is written is in
// this order always: a part of it, or more behind it, is written in place only
// where that keeps the order.
func sorted(backends []tables.Backend) []tables.Backend {
	slices.SortFunc(backends, compareBackends)
	return slices.Clip(slices.CompactFunc(backends, func(a, b tables.Backend) bool {
		return a.Addr == b.Addr && a.Port == b.Port
	}))
}

// without returns what of sorted a is not in sorted b.
func without(a, b []tables.Backend) []tables.Backend {
	var rest []tables.Backend
	for _, x := range a {
		if _, ok := slices.BinarySearchFunc(b, x, compareBackends); !ok {
			rest = append(rest, x)
		}
	}
	return rest
}
