// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"net/netip"
	"time"
)

// AffinityKey is a key of affinity_vN: a client of a service port, known by the
// address of its packets, or by the network namespace of its sockets.
type AffinityKey[A IP] struct {
	Client      A
	NetnsCookie [2]uint32 // low and high half
	ServiceID   uint32
}

// Affinity keys of the two families.
type (
	AffinityKeyV4 = AffinityKey[V4]
	AffinityKeyV6 = AffinityKey[V6]
)

// NewAffinityKey makes the key of a client that is known by its address; false
// if that is not of family A.
func NewAffinityKey[A IP](client netip.Addr, serviceID uint32) (AffinityKey[A], bool) {
	addr, ok := FromAddr[A](client)
	return AffinityKey[A]{Client: addr, ServiceID: serviceID}, ok
}

// NewSocketAffinityKey makes the key of the sockets of a network namespace.
func NewSocketAffinityKey[A IP](cookie uint64, serviceID uint32) AffinityKey[A] {
	return AffinityKey[A]{NetnsCookie: [2]uint32{uint32(cookie), uint32(cookie >> 32)}, ServiceID: serviceID}
}

// Cookie is the network namespace's, 0 if the client is known by its address.
func (k AffinityKey[A]) Cookie() uint64 {
	return uint64(k.NetnsCookie[1])<<32 | uint64(k.NetnsCookie[0])
}

// String is, for instance, "10.1.0.9 of service 7", or "netns 4711 of service 7".
func (k AffinityKey[A]) String() string {
	client := fmt.Sprintf("netns %d", k.Cookie())
	if k.NetnsCookie == [2]uint32{} {
		client = Addr(k.Client).String()
	}
	return fmt.Sprintf("%s of service %d", client, k.ServiceID)
}

// Affinity is a value of affinity_vN: the backend that a client had last.
type Affinity[A IP] struct {
	BackendAddr A
	BackendPort Be16
	Offset      uint16 // where in the service's range it stood last
	Used        uint32 // when the client connected last, in ticks
}

// Affinities of the two families.
type (
	AffinityV4 = Affinity[V4]
	AffinityV6 = Affinity[V6]
)

// affinityTickShift makes ticks of nanoseconds.
const affinityTickShift = 24

// AffinityTick is a time of the coarse monotonic clock as affinity_vN keeps it.
func AffinityTick(now time.Duration) uint32 { return uint32(uint64(now) >> affinityTickShift) }

// Age is how long ago the client connected last.
func (a Affinity[A]) Age(now time.Duration) time.Duration {
	return max(0, time.Duration(int32(AffinityTick(now)-a.Used))<<affinityTickShift)
}

// Backend is where the backend answers.
func (a Affinity[A]) Backend() netip.AddrPort { return AddrPort(a.BackendAddr, a.BackendPort) }

// String is, for instance, "10.1.0.7:8080 used at 4711".
func (a Affinity[A]) String() string { return fmt.Sprintf("%s used at %d", a.Backend(), a.Used) }
