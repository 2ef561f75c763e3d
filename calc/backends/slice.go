// SPDX-License-Identifier: Apache-2.0

// Package backends turns the EndpointSlices of a service into its
// BackendSlice resources. Backends are spread over chunks by a hash of their
// address; a change rebuilds the chunks that it touches and no other.
package backends

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"unique"

	"github.com/cespare/xxhash/v2"

	"github.com/millrace-project/millrace/calc/address"
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/calc/services"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Slice is what is usable of an EndpointSlice object. It holds the whole
// cluster's backends in memory, hence the dense records.
type Slice struct {
	// Service is the name of the service in the slice's namespace; empty if
	// the object does not tell.
	Service string

	ports   *portSet // nil if no port is usable
	records []record // in order of compareRecords
	usable  int      // records that clients may be sent to
	group   *Group   // where the slice is at present
	// Nodes whose zone matters to records, with their places in the index.
	zoneNodes []zoneNode
}

// record is one endpoint.
type record struct {
	addr  [16]byte // an IPv4 address takes the first 4
	node  unique.Handle[string]
	zone  unique.Handle[string]
	hash  uint32
	place uint16 // of the endpoint in its object, for problems alone
	flags uint8
}

// same tells whether two records are of one content, wherever in the object
// they stood.
func (r record) same(other record) bool {
	r.place, other.place = 0, 0
	return r == other
}

const (
	flagIPv4 = 1 << iota
	flagReady
	flagServing
	flagTerminating
)

var none = unique.Make("")

// bytes gives the address as resources carry it.
func (r *record) bytes() []byte {
	if r.flags&flagIPv4 != 0 {
		return r.addr[:4]
	}
	return r.addr[:]
}

// usable tells whether clients may ever be sent there: to ready backends, and
// to those that still serve while they terminate when none is ready.
func (r *record) usable() bool {
	const draining = flagServing | flagTerminating
	return r.flags&flagReady != 0 || r.flags&draining == draining
}

// compareAddresses orders by family, then address.
func (r *record) compareAddresses(other *record) int {
	return cmp.Or(-cmp.Compare(r.flags&flagIPv4, other.flags&flagIPv4), bytes.Compare(r.addr[:], other.addr[:]))
}

// compareRecords orders by hash, so that a chunk is a range, then by address.
// Whole ties are broken by preference.
func compareRecords(a, b record) int {
	return cmp.Or(cmp.Compare(a.hash, b.hash), a.compareAddresses(&b), comparePreference(&a, &b))
}

// comparePreference orders records of one address, the preferred first: when
// an address is met twice, the endpoint that is not terminating is the
// present one.
func comparePreference(a, b *record) int {
	rank := func(r *record) int {
		rank := 0
		if r.flags&flagTerminating != 0 {
			rank += 4
		}
		if r.flags&flagReady == 0 {
			rank += 2
		}
		if r.flags&flagServing == 0 {
			rank++
		}
		return rank
	}
	if order := cmp.Compare(rank(a), rank(b)); order != 0 {
		return order
	}
	// Known before unknown, then by name: any order will do if it is one.
	return cmp.Or(-cmp.Compare(a.node.Value(), b.node.Value()), -cmp.Compare(a.zone.Value(), b.zone.Value()))
}

// Parse reads an EndpointSlice object. The slice is nil if it is not ours: of
// another address type than IP, or left to another proxy.
func Parse(object *model.EndpointSlice) (*Slice, []problem.Problem) {
	if object.AddressType == "FQDN" || model.LeftToOthers(object.Labels) {
		return nil, nil
	}
	problems := &problem.List{Object: object.Key()}
	if object.AddressType != "IPv4" && object.AddressType != "IPv6" {
		problems.Add("addressType", "%q is not a type of address: the slice is not used", object.AddressType)
		return nil, problems.Sorted()
	}
	slice := &Slice{Service: object.Labels[model.LabelServiceName], ports: parsePorts(object, problems)}
	if slice.Service == "" {
		problems.Add(serviceNameField, "the label is missing: the slice is not used")
	}
	slice.records = make([]record, 0, len(object.Endpoints))
	for i := range object.Endpoints {
		if r, ok := parseEndpoint(object, i, problems); ok {
			slice.records = append(slice.records, r)
		}
	}
	slices.SortFunc(slice.records, compareRecords)
	// An address met twice counts once: the preferred one comes first.
	slice.records = slices.CompactFunc(slice.records, func(a, b record) bool {
		return a.compareAddresses(&b) == 0
	})
	slice.records = slices.Clip(slice.records)
	for i := range slice.records {
		if slice.records[i].usable() {
			slice.usable++
		}
	}
	return slice, problems.Sorted()
}

const serviceNameField = "metadata.labels[" + model.LabelServiceName + "]"

// Orphan is the problem of a slice whose service is not there.
func Orphan(object model.Key, service string) problem.Problem {
	return problem.Problem{Object: object, Field: serviceNameField, Message: fmt.Sprintf(
		"there is no service %s/%s: the slice is not used until there is", object.Namespace, service)}
}

// UnknownNodes gives the problems of endpoints that name a node which the
// cluster does not have, one for each such node.
func (s *Slice) UnknownNodes(object model.Key, known func(node string) bool) []problem.Problem {
	var first map[unique.Handle[string]]uint16
	for i := range s.records {
		r := &s.records[i]
		if r.node == none || known(r.node.Value()) {
			continue
		}
		if first == nil {
			first = map[unique.Handle[string]]uint16{}
		}
		if place, seen := first[r.node]; !seen || r.place < place {
			first[r.node] = r.place
		}
	}
	problems := problem.List{Object: object}
	for node, place := range first {
		problems.Add(fmt.Sprintf("endpoints[%d].nodeName", place),
			"there is no node %q: used, but as on no node of the cluster", node.Value())
	}
	return problems.Sorted()
}

// Nodes calls each for the nodes of the slice's endpoints, more than once if
// several are on one node.
func (s *Slice) Nodes(each func(node string)) {
	for i := range s.records {
		if node := s.records[i].node; node != none {
			each(node.Value())
		}
	}
}

// parseEndpoint reads one endpoint. Its addresses are interchangeable, so the
// first that can be used is.
func parseEndpoint(object *model.EndpointSlice, index int, problems *problem.List) (record, bool) {
	endpoint := &object.Endpoints[index]
	var (
		r     record
		found bool
	)
	if len(endpoint.Addresses) == 0 {
		problems.Add(fmt.Sprintf("endpoints[%d].addresses", index), "no address is given: the endpoint is not used")
	}
	for j, text := range endpoint.Addresses {
		field := func() string { return fmt.Sprintf("endpoints[%d].addresses[%d]", index, j) }
		addr, err := address.ParseUnicast(text)
		if err != nil {
			problems.Add(field(), "%v: not used", err)
			continue
		}
		if family := address.Family(addr); family != object.AddressType {
			problems.Add(field(), "%s is an %s address in a slice of %s: not used", addr, family, object.AddressType)
			continue
		}
		if !found {
			found = true
			r = newRecord(addr)
		}
	}
	if !found {
		return record{}, false
	}
	r.place = uint16(min(index, math.MaxUint16))
	r.node = unique.Make(endpoint.NodeName)
	r.zone = unique.Make(endpoint.Zone)
	if endpoint.Ready == nil || *endpoint.Ready {
		r.flags |= flagReady
	}
	if endpoint.Serving == nil || *endpoint.Serving {
		r.flags |= flagServing
	}
	if endpoint.Terminating != nil && *endpoint.Terminating {
		r.flags |= flagTerminating
	}
	return r, true
}

func newRecord(addr netip.Addr) record {
	var r record
	if addr.Is4() {
		four := addr.As4()
		copy(r.addr[:], four[:])
		r.flags = flagIPv4
	} else {
		r.addr = addr.As16()
	}
	r.hash = uint32(xxhash.Sum64(r.bytes()) >> 32)
	return r
}

// portSet is the ports on which the backends of a slice answer.
type portSet struct {
	// key tells port sets apart.
	key     string
	message *dataplanev1.PortSet
}

func newPortSet(ports []*dataplanev1.TargetPort) *portSet {
	slices.SortFunc(ports, compareTargetPorts)
	var key []byte
	for _, port := range ports {
		key = binary.AppendUvarint(key, uint64(len(port.Name)))
		key = append(key, port.Name...)
		key = append(key, byte(port.Protocol), byte(port.Port>>8), byte(port.Port))
	}
	return &portSet{key: string(key), message: &dataplanev1.PortSet{Ports: ports}}
}

func compareTargetPorts(a, b *dataplanev1.TargetPort) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

func parsePorts(object *model.EndpointSlice, problems *problem.List) *portSet {
	var ports []*dataplanev1.TargetPort
	for i, spec := range object.Ports {
		protocol, known := services.ParseProtocol(spec.Protocol)
		if !known {
			problems.Add(fmt.Sprintf("ports[%d].protocol", i), "%q is not a protocol: the port is not used", spec.Protocol)
			continue
		}
		if protocol == dataplanev1.Protocol_PROTOCOL_UNSPECIFIED || spec.Port == nil {
			// An unserved protocol is the service's problem; a port that is
			// not given means something to others than service proxies.
			continue
		}
		if !services.ValidPort(*spec.Port) {
			problems.Add(fmt.Sprintf("ports[%d].port", i), "%d is not a port (1 to 65535): the port is not used", *spec.Port)
			continue
		}
		port := &dataplanev1.TargetPort{Name: spec.Name, Protocol: protocol, Port: uint32(*spec.Port)}
		if slices.ContainsFunc(ports, func(other *dataplanev1.TargetPort) bool {
			return other.Name == port.Name && other.Protocol == port.Protocol
		}) {
			problems.Add(fmt.Sprintf("ports[%d].name", i), "%q is the name of an earlier port too: the port is not used", spec.Name)
			continue
		}
		ports = append(ports, port)
	}
	if len(ports) == 0 {
		return nil
	}
	return newPortSet(ports)
}
