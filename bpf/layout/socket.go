// SPDX-License-Identifier: Apache-2.0

package layout

import "fmt"

// SockPeers is how many pairs of frontend and backend a socket remembers per
// family while it is unconnected; calls beyond are left untranslated, to the packet programs.
const SockPeers = 16

// SockPeer is a service a socket talks to and the backend it got.
type SockPeer[A IP] struct {
	FrontendAddr A
	BackendAddr  A
	FrontendPort Be16
	BackendPort  Be16
	Proto        uint8
	Used         SockPeerUsed
	Offset       uint16 // backend's index within the service's range when chosen
}

// Socket peers of the two families.
type (
	SockPeerV4 = SockPeer[V4]
	SockPeerV6 = SockPeer[V6]
)

// String is, for instance, "udp 10.0.0.10:53 -> 10.1.0.7:5353".
func (p SockPeer[A]) String() string {
	return fmt.Sprintf("%s %s -> %s", protoName(p.Proto), AddrPort(p.FrontendAddr, p.FrontendPort),
		AddrPort(p.BackendAddr, p.BackendPort))
}

// SockState is a value of sockets_vN, the storage of one socket.
type SockState[A IP] struct {
	Peers [SockPeers]SockPeer[A]
}

// Socket storage of the two families.
type (
	SockStateV4 = SockState[V4]
	SockStateV6 = SockState[V6]
)

// ConnectedSlots is the number of elements of connected_vN: a socket's is at its
// cookie modulo this.
const ConnectedSlots = 64 * 1024

// Connected is an element of connected_vN: the peer of one connected socket. A
// socket whose element another one has stands in spilled_vN, by cookie.
type Connected[A IP] struct {
	Cookie  uint64 // 0: free
	Spilled uint32 // entries of spilled_vN that belong here
	Pad     uint32
	Peer    SockPeer[A]
}

// Connected sockets of the two families.
type (
	ConnectedV4 = Connected[V4]
	ConnectedV6 = Connected[V6]
)

// String is, for instance, "socket 4711 udp 10.0.0.10:53 -> 10.1.0.7:5353".
func (c Connected[A]) String() string { return fmt.Sprintf("socket %d %s", c.Cookie, c.Peer) }
