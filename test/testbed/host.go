// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// Host is anything with a network namespace: a node, a pod, the external
// client, the control plane's host.
type Host struct {
	// Name of the host, unique in its cluster.
	Name string
	// IPv4 and IPv6 are the addresses of its eth0.
	IPv4, IPv6 netip.Addr
	// NetNS is the path of its network namespace, for nsenter --net=.
	NetNS string
	// Cgroup is the path of the cgroup v2 that its processes are in.
	Cgroup string

	cluster *Cluster
}

// Node is a host that runs an agent and has pods.
type Node struct {
	Host
	// PodCIDRv4 and PodCIDRv6 are the prefixes its pods have addresses of.
	PodCIDRv4, PodCIDRv6 netip.Prefix
	// NodeCgroup is the cgroup that holds the node's own processes and its
	// pods: what an agent is to attach its programs to.
	NodeCgroup string
	// BPFDir is the node's directory on a BPF file system.
	BPFDir string
	// StateDir is where the node's agent keeps its state.
	StateDir string
	// Socket is the path of the agent's unix socket.
	Socket string
	// Pods of the node.
	Pods []*Pod
}

// Pod is a host behind a veth pair on a node.
type Pod struct {
	Host
	// NodeName is the node it runs on.
	NodeName string
	// Device is the name of the node's end of its veth pair.
	Device string
}

// IP is the host's address of the family, 4 or 6.
func (h *Host) IP(family int) netip.Addr {
	if family == 6 {
		return h.IPv6
	}
	return h.IPv4
}

func (h *Host) place() placement { return placement{netns: h.NetNS, cgroup: h.Cgroup} }

// bypass is a placement in the host's network namespace outside of every
// node's cgroup, where no socket-level program sees the processes.
func (h *Host) bypass() placement {
	return placement{netns: h.NetNS, cgroup: h.cluster.bypassCgroup()}
}

// Do runs fn on a thread in the host's network namespace. Goroutines that fn
// starts run outside of it, and the thread is in the caller's cgroup.
func (h *Host) Do(fn func() error) error { return InNetNS(h.NetNS, fn) }

// DialContext opens a connection from the host's network namespace. The address
// must be numeric: only then does net open the socket on the calling thread.
func (h *Host) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = h.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Run runs a program on the host to its end and returns its standard output.
func (h *Host) Run(args ...string) ([]byte, error) { return h.place().run(args) }

// Start starts a program on the host; name is unique in the cluster.
func (h *Host) Start(name string, args ...string) (*Process, error) {
	return h.cluster.track(h.place().spawn(h.cluster.LogDir(), name, args))
}

// StartBypass is Start outside of every node's cgroup, so that programs
// attached to a node's cgroup do not see the process: what it sends is for
// the programs on devices alone.
func (h *Host) StartBypass(name string, args ...string) (*Process, error) {
	return h.cluster.track(h.bypass().spawn(h.cluster.LogDir(), name, args))
}

// Nft applies an nft script in the host's namespace.
func (h *Host) Nft(script string) error {
	var output bytes.Buffer
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := h.place().start(cmd); err != nil {
		return fmt.Errorf("start nft on %s: %w", h.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("nft on %s: %w: %s", h.Name, err, output.Bytes())
	}
	return nil
}

// SetMTU sets the MTU of a device of the host.
func (h *Host) SetMTU(device string, mtu int) error {
	return h.Do(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return fmt.Errorf("find device %s on %s: %w", device, h.Name, err)
		}
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set MTU of %s on %s: %w", device, h.Name, err)
		}
		return nil
	})
}

// SetRouteMTU bounds packets that the host forwards to a prefix it has a
// route to, as if the next link were narrower than its device.
func (h *Host) SetRouteMTU(prefix netip.Prefix, mtu int) error {
	return h.Do(func() error {
		routes, err := netlink.RouteListFiltered(netlinkFamily(prefix.Addr()), &netlink.Route{Dst: ipNet(prefix)}, netlink.RT_FILTER_DST)
		if err != nil {
			return fmt.Errorf("find route to %s on %s: %w", prefix, h.Name, err)
		}
		if len(routes) != 1 {
			return fmt.Errorf("%d routes to %s on %s, want one", len(routes), prefix, h.Name)
		}
		route := routes[0]
		route.MTU, route.MTULock = mtu, true
		if err := netlink.RouteReplace(&route); err != nil {
			return fmt.Errorf("set MTU of route to %s on %s: %w", prefix, h.Name, err)
		}
		return nil
	})
}

// AddRoute routes a prefix by way of another host of the switch.
func (h *Host) AddRoute(prefix netip.Prefix, via netip.Addr) error {
	return h.Do(func() error { return addRoute("eth0", prefix, via) })
}

// NSEnter is the command line prefix that enters the host's namespace and
// cgroup by hand.
func (h *Host) NSEnter() string {
	return fmt.Sprintf("sh -c 'echo $$ > %s && exec nsenter --net=%s \"$@\"' -",
		filepath.Join(h.Cgroup, "cgroup.procs"), h.NetNS)
}
