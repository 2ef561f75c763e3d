// SPDX-License-Identifier: Apache-2.0

// Package tables is the face of the BPF maps that the programmers write to. It
// speaks both address families with one set of types, so that programmers are
// written once, and it is where a test looks at every single write.
package tables

import (
	"fmt"
	"net/netip"
)

// Family is an address family, an index for tables that exist once per family.
type Family uint8

// The families.
const (
	V4 Family = 0
	V6 Family = 1
)

// Families lists both.
var Families = [...]Family{V4, V6}

// String returns "v4" or "v6", the suffix of the maps' names.
func (f Family) String() string {
	if f == V4 {
		return "v4"
	}
	return "v6"
}

// Address is an address of either family; IPv4 takes the first four bytes. It
// is a third smaller than netip.Addr and agents keep hundreds of thousands.
type Address [16]byte

// FromSlice makes an address of 4 or 16 bytes.
func FromSlice(b []byte) (a Address, f Family, ok bool) {
	switch len(b) {
	case 4:
		copy(a[:], b)
		return a, V4, true
	case 16:
		copy(a[:], b)
		return a, V6, true
	}
	return a, V4, false
}

// FromAddr makes an address of a netip.Addr.
func FromAddr(addr netip.Addr) (Address, Family) {
	addr = addr.Unmap()
	var a Address
	if addr.Is4() {
		b := addr.As4()
		copy(a[:], b[:])
		return a, V4
	}
	return addr.As16(), V6
}

// Addr returns the address as a netip.Addr.
func (a Address) Addr(f Family) netip.Addr {
	if f == V4 {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.AddrFrom16(a)
}

// FrontendKey is what a client dials.
type FrontendKey struct {
	Addr   Address
	Port   uint16
	Proto  uint8
	Family Family
}

// AddrPort returns address and port.
func (k FrontendKey) AddrPort() netip.AddrPort {
	return netip.AddrPortFrom(k.Addr.Addr(k.Family), k.Port)
}

// ProtoName returns "TCP", "UDP" or a number.
func ProtoName(proto uint8) string {
	switch proto {
	case 6:
		return "TCP"
	case 17:
		return "UDP"
	}
	return fmt.Sprint(proto)
}

// String returns "10.0.0.1:80/TCP".
func (k FrontendKey) String() string {
	return k.AddrPort().String() + "/" + ProtoName(k.Proto)
}

// Frontend is the value under a FrontendKey.
type Frontend struct {
	ServiceID uint32
	First     uint32
	Count     uint32
	Flags     uint32
	// Affinity is for how many seconds a client keeps its backend.
	Affinity uint32
}

// FrontendEntry is an entry of frontends_vN.
type FrontendEntry struct {
	Key   FrontendKey
	Value Frontend
}

// Backend is an element of backends_vN.
type Backend struct {
	Addr  Address
	Port  uint16
	Flags uint16
}

// AddrPort returns address and port.
func (b Backend) AddrPort(f Family) netip.AddrPort {
	return netip.AddrPortFrom(b.Addr.Addr(f), b.Port)
}

// BackendWrite is a run of elements of backends_vN.
type BackendWrite struct {
	First    uint32
	Backends []Backend
}

// IDKey is the digest of a natural key.
type IDKey [16]byte

// IDEntry is an entry of ids.
type IDEntry struct {
	Key IDKey
	ID  uint32
}

// RouteKey is a prefix.
type RouteKey struct {
	Addr   Address
	Bits   uint8
	Family Family
}

// Prefix returns the prefix.
func (k RouteKey) Prefix() netip.Prefix {
	return netip.PrefixFrom(k.Addr.Addr(k.Family), int(k.Bits))
}

// Route is the value under a RouteKey.
type Route struct {
	Flags   uint32
	Ifindex uint32
}

// RouteEntry is an entry of routes_vN.
type RouteEntry struct {
	Key   RouteKey
	Value Route
}

// Frontends is frontends_vN of both families. An update of one entry is atomic:
// a lookup sees the old value or the new. Calls with several entries write them
// in any order and may have written some when they fail.
type Frontends interface {
	// FrontendCapacity returns how many entries there can be.
	FrontendCapacity(f Family) uint32
	// ReadFrontends calls each with every entry.
	ReadFrontends(f Family, each func(FrontendEntry)) error
	PutFrontends(f Family, entries []FrontendEntry) error
	// DeleteFrontends ignores entries that are not there.
	DeleteFrontends(f Family, keys []FrontendKey) error
}

// Backends is backends_vN of both families. A write of an element is not
// atomic; elements that a frontend covers must not be written.
type Backends interface {
	// BackendCapacity returns the number of elements.
	BackendCapacity(f Family) uint32
	ReadBackends(f Family, first, n uint32) ([]Backend, error)
	PutBackends(f Family, writes []BackendWrite) error
}

// IDs is the map ids.
type IDs interface {
	ReadIDs(each func(IDEntry)) error
	PutIDs(entries []IDEntry) error
	DeleteIDs(keys []IDKey) error
}

// Routes is routes_vN of both families.
type Routes interface {
	ReadRoutes(f Family, each func(RouteEntry)) error
	PutRoutes(f Family, entries []RouteEntry) error
	DeleteRoutes(f Family, keys []RouteKey) error
}
