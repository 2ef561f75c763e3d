// SPDX-License-Identifier: Apache-2.0

package interfaces

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netlinkHost is the network namespace of the calling thread.
type netlinkHost struct{}

// retryDump repeats a dump that the kernel changed under.
func retryDump[T any](dump func() (T, error)) (T, error) {
	for range 4 {
		result, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return result, err
		}
	}
	// A dump that never holds still is still better than none: the next event
	// brings another look.
	result, err := dump()
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil
	}
	return result, err
}

func (netlinkHost) links() (map[int]*link, error) {
	list, err := retryDump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	links := make(map[int]*link, len(list))
	for _, l := range list {
		attrs := l.Attrs()
		links[attrs.Index] = &link{
			index:       attrs.Index,
			name:        attrs.Name,
			kind:        l.Type(),
			up:          attrs.RawFlags&unix.IFF_UP != 0,
			loopback:    attrs.RawFlags&unix.IFF_LOOPBACK != 0,
			masterIndex: attrs.MasterIndex,
		}
	}
	addresses, err := retryDump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		l := links[a.LinkIndex]
		if l == nil || a.Scope != unix.RT_SCOPE_UNIVERSE {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			ones, _ := a.Mask.Size()
			l.addresses = append(l.addresses, netip.PrefixFrom(addr.Unmap(), ones))
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := defaultRoutes(links, family); err != nil {
			return nil, err
		}
	}
	return links, nil
}

func defaultRoutes(links map[int]*link, family int) error {
	name := "IPv4"
	if family == netlink.FAMILY_V6 {
		name = "IPv6"
	}
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN}
	routes, err := retryDump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list %s routes: %w", name, err)
	}
	mark := func(index int) {
		l := links[index]
		switch {
		case l == nil || l.defaultFor == name:
		case l.defaultFor == "":
			l.defaultFor = name
		default:
			l.defaultFor += " and " + name
		}
	}
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		if r.Type != unix.RTN_UNICAST {
			continue
		}
		mark(r.LinkIndex)
		for _, hop := range r.MultiPath {
			mark(hop.LinkIndex)
		}
	}
	return nil
}

func (netlinkHost) deviceOf(addr netip.Addr) (int, string, error) {
	routes, err := netlink.RouteGetWithOptions(addr.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES),
		errors.Is(err, unix.EINVAL), err == nil && len(routes) == 0:
		return 0, fmt.Sprintf("there is no route to %s", addr), nil
	case err != nil:
		return 0, "", fmt.Errorf("look up route to %s: %w", addr, err)
	}
	r := routes[0]
	switch {
	case r.Type == unix.RTN_LOCAL:
		return 0, fmt.Sprintf("%s is an address of the node itself", addr), nil
	case r.Type != unix.RTN_UNICAST:
		return 0, fmt.Sprintf("there is no route to %s", addr), nil
	case r.Gw != nil || r.Via != nil || len(r.MultiPath) > 0:
		return 0, fmt.Sprintf("the route to %s leads to a gateway, not to a device of this node", addr), nil
	}
	return r.LinkIndex, "", nil
}

func (netlinkHost) portOf(bridge int, addr netip.Addr) (int, string, error) {
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	neighbours, err := retryDump(func() ([]netlink.Neigh, error) { return netlink.NeighList(bridge, family) })
	if err != nil {
		return 0, "", fmt.Errorf("list neighbours: %w", err)
	}
	var mac string
	for _, n := range neighbours {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == addr && len(n.HardwareAddr) > 0 &&
			n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) == 0 {
			mac = n.HardwareAddr.String()
		}
	}
	// Make the kernel ask; the answer is an event that brings us back.
	ask := func() error {
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: bridge, Family: family, IP: addr.AsSlice(), State: netlink.NUD_NONE, Flags: netlink.NTF_USE,
		})
		if err != nil {
			return fmt.Errorf("ask for neighbour %s: %w", addr, err)
		}
		return nil
	}
	if mac == "" {
		return 0, fmt.Sprintf("%s has not answered yet", addr), ask()
	}
	entries, err := retryDump(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return 0, "", fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, e := range entries {
		if e.MasterIndex == bridge && e.LinkIndex != bridge && e.HardwareAddr.String() == mac &&
			e.State&netlink.NUD_PERMANENT == 0 {
			return e.LinkIndex, "", nil
		}
	}
	// A bridge forgets who is silent long before the neighbour entry goes.
	return 0, fmt.Sprintf("no port has seen %s, the hardware address of %s", mac, addr), ask()
}
