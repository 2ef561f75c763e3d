// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"math"

	"golang.org/x/sys/unix"
)

// Sizes up to which tables grow unless told otherwise: four to sixteen times
// what they begin with. A full array of IPv6 backends then takes 80 MiB.
const (
	LimitFrontends = 1 << 20
	LimitBackends  = 1 << 22
	LimitRoutes    = 1 << 20
	LimitIDs       = 1 << 20
)

// LimitEmbryonic is the size up to which the maps of flows that are being opened
// grow. They take their memory at once, 73 MiB at this size for IPv6.
const LimitEmbryonic = 1 << 18

// Bytes that an established flow's entry takes, measured: the kernel rounds
// 168 up to 192 and 264 up to 512, and there is a share of the hash table.
const (
	establishedBytesV4 = 224
	establishedBytesV6 = 544
	// establishedShare is the part of the machine's memory that the established
	// flows of a family may take by themselves.
	establishedShare = 32
)

// LimitEstablished returns the size up to which a family's map of established
// flows grows unless told otherwise: what fits into a share of the memory.
func LimitEstablished(family int) uint32 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0 // cannot fail on Linux; the map keeps its size
	}
	entry := uint64(establishedBytesV4)
	if family == 6 {
		entry = establishedBytesV6
	}
	return uint32(min(uint64(info.Totalram)*uint64(info.Unit)/establishedShare/entry, math.MaxUint32))
}
