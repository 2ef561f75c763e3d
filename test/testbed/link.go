// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// podGateway is the IPv4 address pods route by: nobody has it, the node's end
// of the veth pair answers for it (proxy_arp, which needs a default route in
// the node's namespace).
var podGateway = netip.MustParseAddr("169.254.1.1")

// podGatewayV6 is the same for IPv6; the node's end has it as a second
// link-local address.
var podGatewayV6 = netip.MustParseAddr("fe80::1")

// bridgeName is the switch's bridge.
const bridgeName = "br0"

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}

func hostPrefix(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

func defaultPrefix(addr netip.Addr) netip.Prefix {
	if addr.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func netlinkFamily(addr netip.Addr) int {
	if addr.Is6() {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// The functions below act on the calling thread's network namespace.

func linkUp(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set %s up: %w", name, err)
	}
	return link, nil
}

func addAddress(link netlink.Link, prefix netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", prefix, link.Attrs().Name, err)
	}
	return nil
}

// addRoute routes prefix by a device; via may be the zero Addr.
func addRoute(device string, prefix netip.Prefix, via netip.Addr) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find device %s: %w", device, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(prefix), Scope: netlink.SCOPE_LINK}
	if via.IsValid() {
		route.Gw, route.Scope, route.Flags = via.AsSlice(), netlink.SCOPE_UNIVERSE, int(netlink.FLAG_ONLINK)
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("add route to %s: %w", prefix, err)
	}
	return nil
}

// addVeth makes a veth pair between the calling thread's namespace and the
// one at peerNetNS.
func addVeth(name, peerName, peerNetNS string, mtu int) error {
	peer, err := os.Open(peerNetNS)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer peer.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peerName, PeerNamespace: netlink.NsFd(peer.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("create veth pair %s: %w", name, err)
	}
	return nil
}

// buildSwitch makes the bridge and the address that hosts have as their
// default gateway.
func (c *Cluster) buildSwitch() error {
	if err := createNetNS(c.Switch.NetNS); err != nil {
		return err
	}
	return c.Switch.Do(func() error {
		if err := applySysctls(append(baseSysctls(c.Options.CongestionControl), nodeSysctls...)); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("create bridge: %w", err)
		}
		if _, err := linkUp("lo"); err != nil {
			return err
		}
		bridge, err := linkUp(bridgeName)
		if err != nil {
			return err
		}
		for _, addr := range []netip.Addr{c.Switch.IPv4, c.Switch.IPv6} {
			if err := addAddress(bridge, underlayPrefix(addr)); err != nil {
				return err
			}
		}
		return nil
	})
}

// buildHost makes a host with eth0 on the switch.
func (c *Cluster) buildHost(host *Host, uplink Uplink, extra ...sysctl) error {
	if err := createNetNS(host.NetNS); err != nil {
		return err
	}
	err := host.Do(func() error {
		if err := applySysctls(append(baseSysctls(c.Options.CongestionControl), extra...)); err != nil {
			return err
		}
		_, err := linkUp("lo")
		return err
	})
	if err != nil {
		return err
	}
	if err := c.plug(host, uplink); err != nil {
		return err
	}
	return host.Do(func() error {
		link, err := linkUp("eth0")
		if err != nil {
			return err
		}
		for _, addr := range []netip.Addr{host.IPv4, host.IPv6} {
			if err := addAddress(link, underlayPrefix(addr)); err != nil {
				return err
			}
			if err := addRoute("eth0", defaultPrefix(addr), c.Switch.IP(familyOf(addr))); err != nil {
				return err
			}
		}
		return nil
	})
}

// buildPod makes a pod and its veth pair.
func (c *Cluster) buildPod(node *Node, pod *Pod) error {
	if err := createNetNS(pod.NetNS); err != nil {
		return err
	}
	err := node.Do(func() error {
		if err := addPair(c.Options.PodDevice, pod.Device, "eth0", pod.NetNS, c.Options.MTU); err != nil {
			return err
		}
		if err := applySysctls(podDeviceSysctls(pod.Device)); err != nil {
			return err
		}
		link, err := linkUp(pod.Device)
		if err != nil {
			return err
		}
		if err := addAddress(link, netip.PrefixFrom(podGatewayV6, 64)); err != nil {
			return err
		}
		for _, addr := range []netip.Addr{pod.IPv4, pod.IPv6} {
			if err := addRoute(pod.Device, hostPrefix(addr), netip.Addr{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return pod.Do(func() error {
		if err := applySysctls(baseSysctls(c.Options.CongestionControl)); err != nil {
			return err
		}
		if _, err := linkUp("lo"); err != nil {
			return err
		}
		link, err := linkUp("eth0")
		if err != nil {
			return err
		}
		for _, addr := range []netip.Addr{pod.IPv4, pod.IPv6} {
			if err := addAddress(link, hostPrefix(addr)); err != nil {
				return err
			}
		}
		if err := addRoute("eth0", defaultPrefix(podGateway), podGateway); err != nil {
			return err
		}
		return addRoute("eth0", defaultPrefix(podGatewayV6), podGatewayV6)
	})
}

// routePods routes the pods of every other node by that node.
func (c *Cluster) routePods() error {
	for _, node := range c.Nodes {
		for _, other := range c.Nodes {
			if other == node {
				continue
			}
			if err := node.AddRoute(other.PodCIDRv4, other.IPv4); err != nil {
				return err
			}
			if err := node.AddRoute(other.PodCIDRv6, other.IPv6); err != nil {
				return err
			}
		}
	}
	return nil
}
