// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import "net/netip"

// family is the cast of a story in one address family.
type family struct {
	name        string
	n           int
	node, node2 netip.Addr // this node and another
	uplinkBits  int
	podA, podB  netip.Addr // on this node
	podC        netip.Addr // on the other
	outside     netip.Addr // no part of the cluster
	router      netip.Addr // on the way to anywhere
	vip, vip2   netip.Addr // cluster addresses of services
	everything  string
	ipLen       int
}

var families = []*family{
	{
		name: "v4", n: 4, node: netip.MustParseAddr("192.168.7.1"), node2: netip.MustParseAddr("192.168.7.2"), uplinkBits: 24,
		podA: netip.MustParseAddr("10.1.0.10"), podB: netip.MustParseAddr("10.1.0.11"), podC: netip.MustParseAddr("10.2.0.20"),
		outside: netip.MustParseAddr("203.0.113.9"), router: netip.MustParseAddr("198.51.100.1"),
		vip: netip.MustParseAddr("10.96.0.1"), vip2: netip.MustParseAddr("10.96.0.2"), everything: "0.0.0.0/0", ipLen: 20,
	},
	{
		name: "v6", n: 6, node: netip.MustParseAddr("fd07::1"), node2: netip.MustParseAddr("fd07::2"), uplinkBits: 64,
		podA: netip.MustParseAddr("fd10:1::10"), podB: netip.MustParseAddr("fd10:1::11"), podC: netip.MustParseAddr("fd10:2::20"),
		outside: netip.MustParseAddr("2001:db8:9::9"), router: netip.MustParseAddr("2001:db8:1::1"),
		vip: netip.MustParseAddr("fd96::1"), vip2: netip.MustParseAddr("fd96::2"), everything: "::/0", ipLen: 40,
	},
}

// at is an address with a port.
func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
