// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"strings"
)

// Family is which addresses a cluster has.
type Family string

// The families of clusters. In Dual ones IPv4 comes first.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
	Dual Family = "dual"
)

func (f Family) has(addr netip.Addr) bool {
	return f == Dual || addr.Is4() == (f == IPv4)
}

// Addresses of every cluster; they lie in network namespaces of its own.
var (
	nodeNets     = prefixes("172.30.0.0/24", "fd00:30::/64")
	serviceCIDRs = prefixes("10.96.0.0/16", "fd00:10:96::/112")
	podCIDRs     = prefixes("10.244.0.0/16", "fd00:244::/48")
)

func prefixes(all ...string) []netip.Prefix {
	parsed := make([]netip.Prefix, len(all))
	for i, s := range all {
		parsed[i] = netip.MustParsePrefix(s)
	}
	return parsed
}

// of returns those of the family.
func (f Family) of(all []netip.Prefix) []netip.Prefix {
	var some []netip.Prefix
	for _, p := range all {
		if f.has(p.Addr()) {
			some = append(some, p)
		}
	}
	return some
}

// controlPlanePart names the network namespace of the control plane, switchPart
// that of the switch.
const (
	controlPlanePart = "control"
	switchPart       = "switch"
	// uplink is the device of a node towards the switch.
	uplink = "eth0"
)

// hostAddresses are those of a host on the nodes' network: 2 is the control
// plane, 10 and what follows are nodes.
func (c *Cluster) hostAddresses(number int) []netip.Prefix {
	var all []netip.Prefix
	for _, net := range c.opts.Family.of(nodeNets) {
		bytes := net.Addr().AsSlice()
		bytes[len(bytes)-1] = byte(number)
		addr, _ := netip.AddrFromSlice(bytes)
		all = append(all, netip.PrefixFrom(addr, net.Bits()))
	}
	return all
}

// ControlPlaneAddress is where nodes and pods reach the API server, at port
// 6443, and the source of what comes from outside.
func (c *Cluster) ControlPlaneAddress() netip.Addr { return c.hostAddresses(2)[0].Addr() }

// APIServer is the API server's URL for the nodes and for clients outside.
func (c *Cluster) APIServer() string {
	return "https://" + c.inside()
}

// podCIDR of a node: 10.244.N.0/24, fd00:244:0:N::/64.
func podCIDR(all netip.Prefix, number int) netip.Prefix {
	bytes := all.Addr().AsSlice()
	if all.Addr().Is4() {
		bytes[2] = byte(number)
		addr, _ := netip.AddrFromSlice(bytes)
		return netip.PrefixFrom(addr, 24)
	}
	bytes[7] = byte(number)
	addr, _ := netip.AddrFromSlice(bytes)
	return netip.PrefixFrom(addr, 64)
}

// makeNetwork makes the network namespaces with devices, addresses and routes.
func (c *Cluster) makeNetwork(ctx context.Context) error {
	parts := []string{switchPart, controlPlanePart}
	for _, n := range c.nodes {
		parts = append(parts, n.Name)
	}
	for _, part := range parts {
		name := netnsPrefix(c.opts.Name) + part
		if _, err := output(exec.CommandContext(ctx, "ip", "netns", "add", name)); err != nil {
			return err
		}
		if err := c.ip(ctx, part, "link set lo up"); err != nil {
			return err
		}
	}
	// Without a bridge's netfilter hooks: a switch filters nothing.
	if err := c.ip(ctx, switchPart, "link add switch type bridge forward_delay 0 nf_call_iptables 0 nf_call_ip6tables 0 mcast_snooping 0", "link set switch up"); err != nil {
		return err
	}
	if err := c.connect(ctx, controlPlanePart, c.hostAddresses(2)); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := c.connect(ctx, n.Name, c.hostAddresses(n.hostNumber())); err != nil {
			return err
		}
		if err := c.ip(ctx, n.Name, c.defaultRoutes()...); err != nil {
			return err
		}
	}
	for _, part := range parts[1:] {
		if err := c.ip(ctx, part, c.podRoutes(part)...); err != nil {
			return err
		}
	}
	return nil
}

// connect gives a namespace an uplink to the switch with these addresses.
func (c *Cluster) connect(ctx context.Context, part string, addresses []netip.Prefix) error {
	port := "port-" + part
	name := netnsPrefix(c.opts.Name) + part
	if err := c.ip(ctx, switchPart,
		fmt.Sprintf("link add %s type veth peer name %s netns %s", port, uplink, name),
		fmt.Sprintf("link set %s master switch up", port)); err != nil {
		return err
	}
	lines := []string{"link set " + uplink + " up"}
	for _, a := range addresses {
		line := fmt.Sprintf("addr add %s dev %s", a, uplink)
		if a.Addr().Is6() {
			line += " nodad"
		}
		lines = append(lines, line)
	}
	if err := c.ip(ctx, part, lines...); err != nil {
		return err
	}
	return c.sysctl(ctx, part, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
}

func (c *Cluster) defaultRoutes() []string {
	var lines []string
	for _, a := range c.hostAddresses(2) {
		lines = append(lines, fmt.Sprintf("route add default via %s", a.Addr()))
	}
	return lines
}

// podRoutes lead to the pods of all nodes but the namespace's own.
func (c *Cluster) podRoutes(part string) []string {
	var lines []string
	for _, n := range c.nodes {
		if n.Name == part {
			continue
		}
		for i, net := range n.PodCIDRs() {
			lines = append(lines, fmt.Sprintf("route add %s via %s", net, n.Addresses()[i]))
		}
	}
	return lines
}

// ip runs lines of ip(8) in one of the cluster's namespaces.
func (c *Cluster) ip(ctx context.Context, part string, lines ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-n", netnsPrefix(c.opts.Name)+part, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if _, err := output(cmd); err != nil {
		return fmt.Errorf("setting up the network of %s: %w", part, err)
	}
	return nil
}

func (c *Cluster) sysctl(ctx context.Context, part string, settings ...string) error {
	args := append([]string{"--net=" + c.netns(part), "sysctl", "-q", "-w"}, settings...)
	if _, err := output(exec.CommandContext(ctx, "nsenter", args...)); err != nil {
		return fmt.Errorf("setting up the network of %s: %w", part, err)
	}
	return nil
}

// removeNetwork removes a cluster's network namespaces, and with them devices,
// addresses and routes.
func removeNetwork(ctx context.Context, name string) error {
	entries, err := os.ReadDir("/run/netns")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing network namespaces: %w", err)
	}
	for _, entry := range entries {
		part, ours := strings.CutPrefix(entry.Name(), netnsPrefix(name))
		// Names of other clusters may begin with this one's.
		if !ours || part != switchPart && part != controlPlanePart && !nodeName.MatchString(part) {
			continue
		}
		if _, err := output(exec.CommandContext(ctx, "ip", "netns", "delete", entry.Name())); err != nil {
			return err
		}
	}
	return nil
}
