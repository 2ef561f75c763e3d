// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplink is what the eth0 of a node is made of.
type Uplink string

// Uplinks.
const (
	UplinkVeth       Uplink = ""
	UplinkVLAN       Uplink = "vlan"         // on port0
	UplinkBond       Uplink = "bond"         // of port0 and port1
	UplinkVLANOnBond Uplink = "vlan-on-bond" // on bond0, of port0 and port1
	UplinkBridge     Uplink = "bridge"       // with port0
)

// PodDevice is the kind of pair that a pod is behind.
type PodDevice string

// PodDevices.
const (
	PodVeth     PodDevice = ""
	PodNetkit   PodDevice = "netkit"    // layer 3, as CNI plugins make it
	PodNetkitL2 PodDevice = "netkit-l2" // with hardware addresses
)

// vlanID is that of uplinks with one; only tagged frames pass between a node
// and the switch then.
const vlanID = 100

// Available tells whether this kernel makes the devices that the options ask
// for, by making one.
func (o Options) Available() error {
	return inNewThreadNS(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "try0"
		var tries []netlink.Link
		switch o.Uplink {
		case UplinkVLAN, UplinkVLANOnBond:
			tries = append(tries, &netlink.Vlan{LinkAttrs: attrs, VlanId: vlanID})
		}
		switch o.Uplink {
		case UplinkBond, UplinkVLANOnBond:
			tries = append(tries, netlink.NewLinkBond(attrs))
		case UplinkBridge:
			tries = append(tries, &netlink.Bridge{LinkAttrs: attrs})
		}
		if o.PodDevice != PodVeth {
			tries = append(tries, &netlink.Netkit{LinkAttrs: attrs})
		}
		for _, link := range tries {
			// A VLAN needs a device below, which an unknown kind is not asked for.
			if err := netlink.LinkAdd(link); errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("this kernel makes no %s devices", link.Type())
			}
			netlink.LinkDel(link) //nolint:errcheck // it goes with the namespace
		}
		return nil
	})
}

// plug makes a host's eth0 and connects it with the switch.
func (c *Cluster) plug(host *Host, kind Uplink) error {
	ports, tagged := []string{"port0"}, false
	switch kind {
	case UplinkVeth:
		ports = []string{"eth0"}
	case UplinkVLAN:
		tagged = true
	case UplinkBond:
		ports = []string{"port0", "port1"}
	case UplinkVLANOnBond:
		ports, tagged = []string{"port0", "port1"}, true
	case UplinkBridge:
	default:
		return fmt.Errorf("uplink %q is of no known kind", kind)
	}
	sides := make([]string, len(ports))
	for i := range ports {
		sides[i] = fmt.Sprintf("%c-%s", 'p'+rune(i), host.Name)
	}
	err := host.Do(func() error {
		for i, port := range ports {
			if err := addVeth(port, sides[i], c.Switch.NetNS, c.Options.MTU); err != nil {
				return err
			}
		}
		return stack(kind, ports)
	})
	if err != nil {
		return err
	}
	return c.Switch.Do(func() error {
		for _, side := range sides {
			if err := plugSide(side, tagged); err != nil {
				return err
			}
		}
		return nil
	})
}

// plugSide makes the switch's end of a wire a port of the bridge, or the VLAN on
// it.
func plugSide(side string, tagged bool) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	link, err := linkUp(side)
	if err != nil {
		return err
	}
	if tagged {
		if link, err = addVLAN("v"+side, link); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("plug %s into the switch: %w", side, err)
	}
	return nil
}

// stack makes eth0 of the ports, in the calling thread's namespace.
func stack(kind Uplink, ports []string) error {
	var below []netlink.Link
	if kind != UplinkVeth {
		for _, port := range ports {
			link, err := netlink.LinkByName(port)
			if err != nil {
				return err
			}
			below = append(below, link)
		}
	}
	switch kind {
	case UplinkVLAN:
		if _, err := linkUp(ports[0]); err != nil {
			return err
		}
		_, err := addVLAN("eth0", below[0])
		return err
	case UplinkBond:
		_, err := addBond("eth0", below)
		return err
	case UplinkVLANOnBond:
		bond, err := addBond("bond0", below)
		if err != nil {
			return err
		}
		_, err = addVLAN("eth0", bond)
		return err
	case UplinkBridge:
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("create bridge: %w", err)
		}
		if err := netlink.LinkSetMaster(below[0], bridge); err != nil {
			return fmt.Errorf("make %s a port: %w", ports[0], err)
		}
		_, err := linkUp(ports[0])
		return err
	}
	return nil
}

func addVLAN(name string, parent netlink.Link) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, parent.Attrs().Index
	if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: vlanID}); err != nil {
		return nil, fmt.Errorf("create VLAN %s: %w", name, err)
	}
	return linkUp(name)
}

// addBond makes a bond that uses one member at a time: the switch need not know.
func addBond(name string, members []netlink.Link) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bond := netlink.NewLinkBond(attrs)
	bond.Mode, bond.Miimon = netlink.BOND_MODE_ACTIVE_BACKUP, 100
	if err := netlink.LinkAdd(bond); err != nil {
		return nil, fmt.Errorf("create bond %s: %w", name, err)
	}
	for _, member := range members {
		if err := netlink.LinkSetMaster(member, bond); err != nil {
			return nil, fmt.Errorf("make %s a member: %w", member.Attrs().Name, err)
		}
	}
	return linkUp(name)
}

// addPair makes the pair of devices of a pod, in the calling thread's namespace
// and the one at peerNetNS.
func addPair(kind PodDevice, name, peerName, peerNetNS string, mtu int) error {
	if kind == PodVeth {
		return addVeth(name, peerName, peerNetNS, mtu)
	}
	modes := map[PodDevice]netlink.NetkitMode{PodNetkit: netlink.NETKIT_MODE_L3, PodNetkitL2: netlink.NETKIT_MODE_L2}
	mode, known := modes[kind]
	if !known {
		return fmt.Errorf("pods' device %q is of no known kind", kind)
	}
	peer, err := os.Open(peerNetNS)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer peer.Close()
	attrs, inside := netlink.NewLinkAttrs(), netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	inside.Name, inside.MTU, inside.Namespace = peerName, mtu, netlink.NsFd(peer.Fd())
	pair := &netlink.Netkit{LinkAttrs: attrs, Mode: mode}
	pair.SetPeerAttrs(&inside)
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("create netkit pair %s: %w", name, err)
	}
	return nil
}

// Members are the devices below the eth0 of such an uplink.
func (u Uplink) Members() []string {
	return slices.Clone(map[Uplink][]string{
		UplinkVLAN: {"port0"}, UplinkBond: {"port0", "port1"},
		UplinkVLANOnBond: {"port0", "port1", "bond0"}, UplinkBridge: {"port0"},
	}[u])
}
