// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strconv"
)

// V4 is an IPv4 address in network order.
type V4 [4]byte

// V6 is an IPv6 address in network order.
type V6 [16]byte

// IP is the address of one family; the type parameter of all layouts that
// exist once per family.
type IP interface {
	V4 | V6
}

// Be16 is a 16-bit number in network order, such as a port.
type Be16 [2]byte

// Port puts a port into network order.
func Port(p uint16) Be16 {
	var b Be16
	binary.BigEndian.PutUint16(b[:], p)
	return b
}

// Uint16 returns the number in the machine's order.
func (b Be16) Uint16() uint16 { return binary.BigEndian.Uint16(b[:]) }

// String is the number in decimal.
func (b Be16) String() string { return strconv.Itoa(int(b.Uint16())) }

// String is the address in dotted decimal.
func (a V4) String() string { return netip.AddrFrom4(a).String() }

// String is the address in RFC 5952 form.
func (a V6) String() string { return netip.AddrFrom16(a).String() }

// Addr converts a raw address; the zero V4 gives 0.0.0.0, the zero V6 "::".
func Addr[A IP](a A) netip.Addr {
	switch v := any(a).(type) {
	case V4:
		return netip.AddrFrom4(v)
	default:
		return netip.AddrFrom16(any(a).(V6))
	}
}

// AddrPort converts a raw address and port.
func AddrPort[A IP](a A, port Be16) netip.AddrPort {
	return netip.AddrPortFrom(Addr(a), port.Uint16())
}

// FromAddr converts an address to its raw form and tells whether it is of
// family A. A v4-mapped IPv6 address counts as IPv4.
func FromAddr[A IP](addr netip.Addr) (raw A, ok bool) {
	addr = addr.Unmap()
	switch p := any(&raw).(type) {
	case *V4:
		if addr.Is4() {
			*p = addr.As4()
			return raw, true
		}
	case *V6:
		if addr.Is6() {
			*p = addr.As16()
			return raw, true
		}
	}
	return raw, false
}

// compare orders raw addresses as big-endian numbers.
func compare[A IP](a, b A) int {
	switch v := any(a).(type) {
	case V4:
		w := any(b).(V4)
		return bytes.Compare(v[:], w[:])
	default:
		v6, w6 := any(a).(V6), any(b).(V6)
		return bytes.Compare(v6[:], w6[:])
	}
}

// addrBits is the length of an address of family A.
func addrBits[A IP]() int {
	var a A
	return len(a) * 8
}

// Protocols of a frontend or flow.
const (
	ProtoTCP uint8 = 6
	ProtoUDP uint8 = 17
)

// protoName is the protocol as people write it.
func protoName(p uint8) string {
	switch p {
	case ProtoTCP:
		return "tcp"
	case ProtoUDP:
		return "udp"
	}
	return "proto-" + strconv.Itoa(int(p))
}
