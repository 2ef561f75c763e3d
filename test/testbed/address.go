// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"fmt"
	"net/netip"
)

// Address plan. Every cluster lives in namespaces of its own, so that all
// clusters use the same addresses.
var (
	// ServiceCIDRv4 and ServiceCIDRv6 are the prefixes for cluster IPs.
	ServiceCIDRv4 = netip.MustParsePrefix("10.96.0.0/12")
	ServiceCIDRv6 = netip.MustParsePrefix("fd00:10:96::/112")
	// ExternalCIDRv4 and ExternalCIDRv6 are prefixes for external IPs and
	// load balancer addresses; the external client routes them by the first
	// node.
	ExternalCIDRv4 = netip.MustParsePrefix("203.0.113.0/24")
	ExternalCIDRv6 = netip.MustParsePrefix("2001:db8:113::/64")
	// ClusterCIDRv4 and ClusterCIDRv6 cover the pods of all nodes.
	ClusterCIDRv4 = netip.MustParsePrefix("10.244.0.0/16")
	ClusterCIDRv6 = netip.MustParsePrefix("fd00:10:244::/48")

	underlayV4 = netip.MustParsePrefix("172.30.0.0/24")
	underlayV6 = netip.MustParsePrefix("fd00:172:30::/64")
)

// Host numbers on the switch; nodes have firstNodeNumber and following.
const (
	switchNumber    = 1
	controlNumber   = 2
	firstNodeNumber = 11
	clientNumber    = 200
	firstPodNumber  = 10
	// MaxNodes and MaxPodsPerNode are what the address plan has room for.
	MaxNodes       = 100
	MaxPodsPerNode = 200
)

// ServiceIP is the n-th cluster IP of the family, 4 or 6.
func ServiceIP(family, n int) netip.Addr {
	if family == 6 {
		return nth(ServiceCIDRv6.Addr(), n)
	}
	return nth(ServiceCIDRv4.Addr(), n)
}

// ExternalIP is the n-th external address of the family, 4 or 6.
func ExternalIP(family, n int) netip.Addr {
	if family == 6 {
		return nth(ExternalCIDRv6.Addr(), n)
	}
	return nth(ExternalCIDRv4.Addr(), n)
}

// nth adds n, less than 65536, to an address whose low bits are zero.
func nth(base netip.Addr, n int) netip.Addr {
	raw := base.AsSlice()
	raw[len(raw)-1] |= byte(n)
	raw[len(raw)-2] |= byte(n >> 8)
	addr, _ := netip.AddrFromSlice(raw)
	return addr
}

func underlayAddrs(n int) (netip.Addr, netip.Addr) {
	return nth(underlayV4.Addr(), n), nth(underlayV6.Addr(), n)
}

// underlayPrefix is an underlay address with the switch's prefix length.
func underlayPrefix(addr netip.Addr) netip.Prefix {
	if addr.Is6() {
		return netip.PrefixFrom(addr, underlayV6.Bits())
	}
	return netip.PrefixFrom(addr, underlayV4.Bits())
}

func podCIDRs(node int) (netip.Prefix, netip.Prefix) {
	return netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", node)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", node))
}

func familyOf(addr netip.Addr) int {
	if addr.Is6() {
		return 6
	}
	return 4
}
