// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"cmp"
	"fmt"
	"net/netip"
)

// CtKey is a flow's tuple without direction: Lo is the end with the lower
// (address, port), so that both directions have one key.
type CtKey[A IP] struct {
	Lo     A
	Hi     A
	LoPort Be16
	HiPort Be16
	Proto  uint8
	Pad    [3]uint8
}

// Conntrack keys of the two families.
type (
	CtKeyV4 = CtKey[V4]
	CtKeyV6 = CtKey[V6]
)

// NewCtKey makes the key of a flow from a to b. aIsLo tells which end a became
// (flag [CtOrigIsLo] when a is the client); ok is false if an address is not of
// family A.
func NewCtKey[A IP](a, b netip.AddrPort, proto uint8) (key CtKey[A], aIsLo, ok bool) {
	ra, oka := FromAddr[A](a.Addr())
	rb, okb := FromAddr[A](b.Addr())
	c := compare(ra, rb)
	if c == 0 {
		c = cmp.Compare(a.Port(), b.Port())
	}
	aIsLo = c <= 0
	if aIsLo {
		key = CtKey[A]{Lo: ra, Hi: rb, LoPort: Port(a.Port()), HiPort: Port(b.Port()), Proto: proto}
	} else {
		key = CtKey[A]{Lo: rb, Hi: ra, LoPort: Port(b.Port()), HiPort: Port(a.Port()), Proto: proto}
	}
	return key, aIsLo, oka && okb
}

// String is, for instance, "tcp 10.1.0.7:80 <> 10.1.0.9:40000".
func (k CtKey[A]) String() string {
	return fmt.Sprintf("%s %s <> %s", protoName(k.Proto), AddrPort(k.Lo, k.LoPort), AddrPort(k.Hi, k.HiPort))
}

// CtEntry is a value of the conntrack maps: a flow's record, under the tuple
// that the backend sees, or an alias that names it by key and nonce and counts
// as absent when no record with that nonce is there.
type CtEntry[A IP] struct {
	Expires uint64 // coarse monotonic ns; later is a miss; 0 in aliases, which live as long as their record
	Nonce   uint32 // random; equal in a record and its aliases
	Kind    CtKind
	State   CtState // in the record
	Flags   CtFlags
	Main    CtKey[A] // key of the record
	// From here on only in records.
	ClientAddr    A
	FrontendAddr  A
	ClientPort    Be16
	FrontendPort  Be16
	ServiceID     uint32 // 0: not a service
	SourceAddr    A      // what the backend sees as client
	BackendAddr   A
	SourcePort    Be16
	BackendPort   Be16
	SeqExpected   uint32        // ack number that completes the handshake
	OutIfindex    [2]uint32     // device by which each direction leaves, by CtDir; 0: not confirmed
	OutKind       [2]DeviceKind // kind of OutIfindex
	Reason        uint16        // reserved: verdict reason
	SetGeneration [2]uint32     // reserved: per local endpoint (client's, backend's)
	EntryNode     uint32        // reserved: node by which the flow entered
	OriginNetns   uint64        // reserved: netns cookie of the originator, 0 unknown
	StackPort     Be16          // client's port as the host's stack sees it: ClientPort, or another when that was taken
	Mode          uint8         // reserved: how replies return
	TCPFlags      [2]uint8      // TCP flags seen, by CtDir
	Pad           [3]uint8
}

// Conntrack entries of the two families.
type (
	CtEntryV4 = CtEntry[V4]
	CtEntryV6 = CtEntry[V6]
)

// Client is the end that opened the flow.
func (e *CtEntry[A]) Client() netip.AddrPort { return AddrPort(e.ClientAddr, e.ClientPort) }

// Frontend is what the client dialled.
func (e *CtEntry[A]) Frontend() netip.AddrPort { return AddrPort(e.FrontendAddr, e.FrontendPort) }

// Source is what the backend sees as its client.
func (e *CtEntry[A]) Source() netip.AddrPort { return AddrPort(e.SourceAddr, e.SourcePort) }

// Backend is who answers.
func (e *CtEntry[A]) Backend() netip.AddrPort { return AddrPort(e.BackendAddr, e.BackendPort) }

// String tells a record by its ends, an alias by the record it names.
func (e *CtEntry[A]) String() string {
	if e.Kind != CtRecord {
		return fmt.Sprintf("%s of {%s} nonce %08x", e.Kind, e.Main, e.Nonce)
	}
	s := fmt.Sprintf("%s %s client %s", e.Kind, e.State, e.Client())
	if e.Flags&CtDNAT != 0 {
		s += " frontend " + e.Frontend().String()
	}
	if e.Flags&CtSNAT != 0 {
		s += " source " + e.Source().String()
	}
	return s + fmt.Sprintf(" backend %s service %d %s out %s:%d %s:%d nonce %08x", e.Backend(), e.ServiceID,
		e.Flags, e.OutKind[CtOrig], e.OutIfindex[CtOrig], e.OutKind[CtReply], e.OutIfindex[CtReply], e.Nonce)
}

// FragmentKey is a key of fragments_vN: the datagram that fragments belong to.
type FragmentKey[A IP] struct {
	Src   A
	Dst   A
	ID    [4]byte // network order
	Proto uint8
	Pad   [3]uint8
}

// Fragment keys of the two families.
type (
	FragmentKeyV4 = FragmentKey[V4]
	FragmentKeyV6 = FragmentKey[V6]
)

// String is, for instance, "udp 10.1.0.7 > 10.1.0.9 id 0000beef".
func (k FragmentKey[A]) String() string {
	return fmt.Sprintf("%s %s > %s id %x", protoName(k.Proto), Addr(k.Src), Addr(k.Dst), k.ID)
}

// Fragment is a value of fragments_vN: the ports, which only the first fragment
// carries.
type Fragment struct {
	SrcPort Be16
	DstPort Be16
}

// String is, for instance, "ports 4000 > 53".
func (f Fragment) String() string { return fmt.Sprintf("ports %s > %s", f.SrcPort, f.DstPort) }

// CtPressure is a value of ct_pressure: whether an established map had no room
// of late. Its key is [CtTable].
type CtPressure struct {
	Until    uint64 // coarse monotonic ns until which the map counts as full
	Failures uint64 // flows, or attempts of theirs, that found no room
}

// String is, for instance, "3 failures, full until 123456".
func (p CtPressure) String() string {
	return fmt.Sprintf("%d failures, full until %d", p.Failures, p.Until)
}

// CtTable is the key of a family's established map in ct_pressure and ct_limits.
func CtTable(family int) uint32 {
	if family == 6 {
		return 1
	}
	return 0
}

// CtMoveRequest asks the program conntrack_move for entries to be moved between
// the generations of a map. It stands at [CtMoveRequestOffset] of the packet
// that the program is run with, and the keys behind it.
type CtMoveRequest struct {
	Family uint8
	Table  CtMoveTable
	Step   CtMoveStep
	Keys   uint8 // at most CtMoveBatch
}

// Where a [CtMoveRequest] stands, and how many keys one has at most.
const (
	CtMoveRequestOffset = 16
	CtMoveBatch         = 64
)

// CtMoveTable is one of a family's two conntrack maps.
type CtMoveTable uint8

// Conntrack maps of a family.
const (
	CtMoveEstablished CtMoveTable = 0
	CtMoveEmbryonic   CtMoveTable = 1
)

// CtMoveStep is a step of a move.
type CtMoveStep uint8

// Steps of a move.
const (
	CtMoveCopy   CtMoveStep = 0 // copy what the keys name
	CtMoveSettle CtMoveStep = 1 // merge what was written since, and remove the old
)
