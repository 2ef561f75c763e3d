// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Config is the one element of config, written by the agent, read on every
// packet.
type Config struct {
	NodeAddrV4            V4     // source of translated connections; zero: none
	NodeAddrV6            V6     // zero: none
	SnatPortFirst         uint16 // inclusive
	SnatPortLast          uint16
	HostNetnsCookie       uint64
	Flags                 ConfigFlags
	TCPSynTimeout         uint32 // seconds, all of them
	TCPEstablishedTimeout uint32
	TCPCloseTimeout       uint32
	UDPTimeout            uint32 // before the other end answered
	UDPStreamTimeout      uint32 // after
	Reserved              [2]uint64
}

// String tells all fields.
func (c Config) String() string {
	return fmt.Sprintf("node %s %s snat ports %d-%d host netns %d %s timeouts syn %ds established %ds close %ds udp %ds stream %ds",
		c.NodeAddrV4, c.NodeAddrV6, c.SnatPortFirst, c.SnatPortLast, c.HostNetnsCookie, c.Flags,
		c.TCPSynTimeout, c.TCPEstablishedTimeout, c.TCPCloseTimeout, c.UDPTimeout, c.UDPStreamTimeout)
}

// IDKey is a key of ids: the numbers that the agent gave out, by natural key.
type IDKey struct {
	Digest [16]uint8
}

// NewIDKey makes the key of a resource's kind and natural key: the first half
// of SHA-256 over both.
func NewIDKey(kind, naturalKey string) IDKey {
	h := sha256.New()
	h.Write([]byte(kind))
	h.Write([]byte{0})
	h.Write([]byte(naturalKey))
	return IDKey{Digest: [16]uint8(h.Sum(nil))}
}

// String is the digest in hexadecimal.
func (k IDKey) String() string { return hex.EncodeToString(k.Digest[:]) }

// CounterKey is a key of counters.
type CounterKey struct {
	Ifindex uint32 // 0: a socket program
	Reason  Reason
	Pad     uint16
}

// String is, for instance, "ifindex 4 no-backend".
func (k CounterKey) String() string { return fmt.Sprintf("ifindex %d %s", k.Ifindex, k.Reason) }

// Counter is a value of counters, one per CPU.
type Counter struct {
	Packets uint64
	Bytes   uint64
}

// Sum adds up the values of all CPUs.
func Sum(perCPU []Counter) Counter {
	var sum Counter
	for _, c := range perCPU {
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
	}
	return sum
}
