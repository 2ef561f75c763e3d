// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"net/netip"
)

// FrontendKey is a key of frontends_vN: what a client dials.
type FrontendKey[A IP] struct {
	Addr  A
	Port  Be16
	Proto uint8
	Pad   uint8
}

// Frontend keys of the two families.
type (
	FrontendKeyV4 = FrontendKey[V4]
	FrontendKeyV6 = FrontendKey[V6]
)

// NewFrontendKey makes the key of an address, port and protocol; false if the
// address is not of family A.
func NewFrontendKey[A IP](ap netip.AddrPort, proto uint8) (FrontendKey[A], bool) {
	addr, ok := FromAddr[A](ap.Addr())
	return FrontendKey[A]{Addr: addr, Port: Port(ap.Port()), Proto: proto}, ok
}

// AddrPort is what the client dials.
func (k FrontendKey[A]) AddrPort() netip.AddrPort { return AddrPort(k.Addr, k.Port) }

// String is, for instance, "tcp 10.0.0.1:80".
func (k FrontendKey[A]) String() string {
	return protoName(k.Proto) + " " + k.AddrPort().String()
}

// Frontend is a value of frontends_vN.
type Frontend struct {
	ServiceID       uint32 // number of the service port, never 0
	FirstBackend    uint32 // index into backends_vN
	BackendCount    uint32 // 0: refuse
	Flags           FrontendFlags
	AffinityTimeout uint32 // seconds for which a client keeps its backend, 0 none
	Reserved        uint32
}

// String tells all fields.
func (f Frontend) String() string {
	text := fmt.Sprintf("service %d backends [%d,%d) %s", f.ServiceID, f.FirstBackend,
		uint64(f.FirstBackend)+uint64(f.BackendCount), f.Flags)
	if f.AffinityTimeout > 0 {
		text += fmt.Sprintf(" affinity %ds", f.AffinityTimeout)
	}
	return text
}

// Backend is an element of backends_vN.
type Backend[A IP] struct {
	Addr  A
	Port  Be16
	Flags BackendFlags
}

// Backends of the two families.
type (
	BackendV4 = Backend[V4]
	BackendV6 = Backend[V6]
)

// NewBackend makes the element for an address and port; false if the address
// is not of family A.
func NewBackend[A IP](ap netip.AddrPort, flags BackendFlags) (Backend[A], bool) {
	addr, ok := FromAddr[A](ap.Addr())
	return Backend[A]{Addr: addr, Port: Port(ap.Port()), Flags: flags}, ok
}

// AddrPort is where the backend answers.
func (b Backend[A]) AddrPort() netip.AddrPort { return AddrPort(b.Addr, b.Port) }

// String is, for instance, "10.1.0.7:8080 local".
func (b Backend[A]) String() string {
	if b.Flags == 0 {
		return b.AddrPort().String()
	}
	return b.AddrPort().String() + " " + b.Flags.String()
}

// RouteKey is a key of routes_vN; the longest prefix wins.
type RouteKey[A IP] struct {
	PrefixLen uint32
	Addr      A
}

// Route keys of the two families.
type (
	RouteKeyV4 = RouteKey[V4]
	RouteKeyV6 = RouteKey[V6]
)

// NewRouteKey makes the key of a prefix, its host bits cleared; false if the
// prefix is not of family A.
func NewRouteKey[A IP](p netip.Prefix) (RouteKey[A], bool) {
	p = p.Masked()
	addr, ok := FromAddr[A](p.Addr())
	if !ok || p.Bits() < 0 || p.Bits() > addrBits[A]() {
		return RouteKey[A]{}, false
	}
	return RouteKey[A]{PrefixLen: uint32(p.Bits()), Addr: addr}, true
}

// Prefix is the prefix the key stands for.
func (k RouteKey[A]) Prefix() netip.Prefix {
	return netip.PrefixFrom(Addr(k.Addr), int(k.PrefixLen))
}

// String is, for instance, "10.1.0.0/24".
func (k RouteKey[A]) String() string { return k.Prefix().String() }

// Route is a value of routes_vN: who owns an address.
type Route struct {
	Flags   RouteFlags
	Ifindex uint32 // device of a local pod, else 0
}

// String tells all fields.
func (r Route) String() string { return fmt.Sprintf("%s ifindex %d", r.Flags, r.Ifindex) }
