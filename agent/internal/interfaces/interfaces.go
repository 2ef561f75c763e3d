// SPDX-License-Identifier: Apache-2.0

// Package interfaces decides which network devices get programs. It looks at
// the namespace the agent runs in, by netlink, and keeps looking.
//
// The device of a pod is the one that the CNI plugin told of. Where it did not,
// it is the one that the route to the pod's address names; if that is a bridge,
// the port behind which the bridge has seen the address.
// Uplinks are what packets of others come by: every device that is up, is no
// pod's, and has a global address or the default route, but for members of
// bridges and bonds, bridges of pods, and what is excluded by name.
package interfaces

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// Role is what a device is to the dataplane.
type Role string

// The roles.
const (
	RolePod     Role = "pod"
	RoleUplink  Role = "uplink"
	RoleIgnored Role = "ignored"
)

// Endpoint is a pod of this node.
type Endpoint struct {
	// Key is "namespace/pod".
	Key       string
	Addresses []netip.Addr
	// Device and Index are its device as the CNI plugin told of it; Index is 0 if
	// it did not.
	Device string
	Index  uint32
}

// How an endpoint's device was found.
const (
	ByCNI    = "cni"
	ByRoute  = "route"
	ByBridge = "bridge port"
)

// Device is a device with what was decided about it.
type Device struct {
	Name     string
	Index    uint32
	Role     Role
	Reason   string
	Endpoint string
}

// State is what a look at the node found.
type State struct {
	// Devices are all devices, by index.
	Devices []Device
	// Endpoints leads from an endpoint's key to the index of its device.
	Endpoints map[string]uint32
	// By tells how an endpoint's device was found, by key.
	By map[string]string
	// Missing tells why an endpoint's device was not found, by key.
	Missing map[string]string
	// UplinkAddresses are the global addresses of uplinks, sorted.
	UplinkAddresses []netip.Addr
}

// link is a device as the kernel describes it.
type link struct {
	index       int
	name, kind  string
	up          bool
	loopback    bool
	masterIndex int
	addresses   []netip.Prefix // of global scope
	defaultFor  string         // "IPv4", "IPv6" or both, if it has the default route
}

// host is the part of the kernel that decisions are made from.
type host interface {
	links() (map[int]*link, error)
	// deviceOf returns the index of the device that packets to the address
	// leave by, or why there is none that can be a pod's.
	deviceOf(addr netip.Addr) (int, string, error)
	// portOf returns the port of a bridge behind which the address is.
	portOf(bridge int, addr netip.Addr) (int, string, error)
}

// Classifier decides about devices.
type Classifier struct {
	host    host
	exclude []string
	// ports are those behind which addresses were found. A bridge forgets who is
	// silent for five minutes; the port is the pod's all the same.
	ports map[behind]int
}

// behind is an address of a bridge's network.
type behind struct {
	bridge int
	addr   netip.Addr
}

// NewClassifier returns a classifier of the devices of the caller's network
// namespace. Devices whose name matches one of the exclude patterns are no
// uplinks.
func NewClassifier(exclude []string) (*Classifier, error) {
	for _, pattern := range exclude {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("pattern %q: %w", pattern, err)
		}
	}
	return &Classifier{host: &netlinkHost{}, exclude: exclude, ports: map[behind]int{}}, nil
}

// Classify looks at every device. Only one may look at a time. podPrefixes are
// those from which this node's pods get addresses.
func (c *Classifier) Classify(endpoints []Endpoint, podPrefixes []netip.Prefix) (State, error) {
	links, err := c.host.links()
	if err != nil {
		return State{}, err
	}
	state := State{Endpoints: map[string]uint32{}, By: map[string]string{}, Missing: map[string]string{}}
	pods := map[int]string{}     // device to endpoint
	podBridges := map[int]bool{} // bridges that pods' devices are ports of
	// What was told comes before what was found.
	told := func(e Endpoint) int {
		if e.Index != 0 {
			return 0
		}
		return 1
	}
	endpoints = slices.SortedStableFunc(slices.Values(endpoints), func(a, b Endpoint) int { return cmp.Compare(told(a), told(b)) })
	for _, e := range endpoints {
		index, bridge, why := c.find(links, e)
		if why != "" {
			state.Missing[e.Key] = why
			continue
		}
		if other, taken := pods[index]; taken {
			state.Missing[e.Key] = fmt.Sprintf("device %s is that of endpoint %s already", links[index].name, other)
			continue
		}
		pods[index] = e.Key
		state.Endpoints[e.Key] = uint32(index)
		switch {
		case e.Index != 0:
			state.By[e.Key] = ByCNI
		case bridge != 0:
			state.By[e.Key] = ByBridge
		default:
			state.By[e.Key] = ByRoute
		}
		if bridge != 0 {
			podBridges[bridge] = true
		}
	}
	for _, index := range slices.Sorted(maps.Keys(links)) {
		l := links[index]
		d := Device{Name: l.name, Index: uint32(index)}
		if key, ok := pods[index]; ok {
			d.Role, d.Endpoint, d.Reason = RolePod, key, reasons[state.By[key]]
		} else {
			d.Role, d.Reason = c.uplink(links, l, podBridges, podPrefixes)
		}
		if d.Role == RoleUplink {
			for _, prefix := range l.addresses {
				state.UplinkAddresses = append(state.UplinkAddresses, prefix.Addr())
			}
		}
		state.Devices = append(state.Devices, d)
	}
	maps.DeleteFunc(c.ports, func(_ behind, port int) bool { return links[port] == nil })
	slices.SortFunc(state.UplinkAddresses, netip.Addr.Compare)
	state.UplinkAddresses = slices.Compact(state.UplinkAddresses)
	return state, nil
}

// reasons say for people how a pod's device was found.
var reasons = map[string]string{
	ByCNI: "the CNI plugin told", ByRoute: "route to the endpoint's address", ByBridge: "bridge port of the endpoint's address",
}

// find returns the index of an endpoint's device and of the bridge it is a port
// of, or why it was not found.
func (c *Classifier) find(links map[int]*link, e Endpoint) (index, bridge int, why string) {
	if e.Index != 0 {
		return findTold(links, e)
	}
	if len(e.Addresses) == 0 {
		return 0, 0, "the endpoint has no address"
	}
	var reasons []string
	for _, addr := range e.Addresses {
		index, bridge, why := c.findBy(links, addr)
		if why == "" {
			return index, bridge, ""
		}
		reasons = append(reasons, why)
	}
	return 0, 0, strings.Join(slices.Compact(reasons), "; ")
}

// findTold looks for the device that the CNI plugin told of. Indexes are used
// again, so the name must be the same.
func findTold(links map[int]*link, e Endpoint) (index, bridge int, why string) {
	l := links[int(e.Index)]
	if l == nil || l.name != e.Device {
		return 0, 0, fmt.Sprintf("device %s (index %d), which the CNI plugin told of, is gone", e.Device, e.Index)
	}
	if master := links[l.masterIndex]; master != nil && master.kind == "bridge" {
		bridge = master.index
	}
	return l.index, bridge, notPair(l)
}

func (c *Classifier) findBy(links map[int]*link, addr netip.Addr) (index, bridge int, why string) {
	index, why, err := c.host.deviceOf(addr)
	if err != nil {
		return 0, 0, err.Error()
	}
	if why != "" {
		return 0, 0, why
	}
	l := links[index]
	if l == nil {
		return 0, 0, fmt.Sprintf("the route to %s names device %d, which is gone", addr, index)
	}
	if l.loopback {
		return 0, 0, fmt.Sprintf("%s is an address of the node itself", addr)
	}
	if l.defaultFor != "" {
		return 0, 0, fmt.Sprintf("the route to %s leaves by %s, which has the default route", addr, l.name)
	}
	if l.kind != "bridge" {
		return index, 0, notPair(l)
	}
	port, why, err := c.host.portOf(index, addr)
	if err != nil {
		return 0, 0, err.Error()
	}
	at := behind{index, addr}
	if why != "" {
		known := links[c.ports[at]]
		if known == nil || known.masterIndex != index {
			return 0, 0, fmt.Sprintf("bridge %s: %s", l.name, why)
		}
		port = known.index
	}
	c.ports[at] = port
	if links[port] == nil {
		return 0, 0, fmt.Sprintf("bridge %s: port %d is gone", l.name, port)
	}
	return port, index, notPair(links[port])
}

// notPair tells why a device cannot be a pod's. The fast path hands packets to
// the other end of a pair, in the pod; the kernel drops what it is told to
// hand over at a device without one (bpf_redirect_peer). An uplink that shares
// its subnet with pods is no pod's device either.
func notPair(l *link) string {
	if l.kind == "veth" || l.kind == "netkit" {
		return ""
	}
	return fmt.Sprintf("device %s is of kind %q, and only veth and netkit pairs are served; packets of the pod are not translated", l.name, l.kind)
}

// uplink decides about a device that is no pod's.
func (c *Classifier) uplink(links map[int]*link, l *link, podBridges map[int]bool, podPrefixes []netip.Prefix) (Role, string) {
	for _, pattern := range c.exclude {
		if ok, _ := path.Match(pattern, l.name); ok {
			return RoleIgnored, fmt.Sprintf("excluded by pattern %q", pattern)
		}
	}
	switch {
	case l.loopback:
		return RoleIgnored, "loopback"
	case !l.up:
		return RoleIgnored, "not up"
	case l.masterIndex != 0:
		if master := links[l.masterIndex]; master != nil && master.kind != "vrf" {
			return RoleIgnored, fmt.Sprintf("member of %s %s", cmp.Or(master.kind, "device"), master.name)
		}
	case podBridges[l.index]:
		return RoleIgnored, "bridge of pods"
	}
	if l.defaultFor != "" {
		return RoleUplink, "has the default route of " + l.defaultFor
	}
	if len(l.addresses) == 0 {
		return RoleIgnored, "no global address and no default route"
	}
	if l.kind != "bridge" && l.kind != "veth" {
		// Overlays have addresses of the node's pod prefixes too.
		return RoleUplink, "has global address " + l.addresses[0].String()
	}
	for _, address := range l.addresses {
		if !slices.ContainsFunc(podPrefixes, func(p netip.Prefix) bool { return p.Contains(address.Addr()) }) {
			return RoleUplink, "has global address " + address.String()
		}
	}
	return RoleIgnored, "its addresses are of this node's pod prefixes: a device of pods"
}
