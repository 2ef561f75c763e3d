// SPDX-License-Identifier: Apache-2.0

package interfaces

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// veth makes a pair of which the first end has the name; both are up.
func veth(t *testing.T, name string) netlink.Link {
	t.Helper()
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-x"}
	must(t, netlink.LinkAdd(pair))
	l, err := netlink.LinkByName(name)
	must(t, err)
	peer, err := netlink.LinkByName(name + "-x")
	must(t, err)
	must(t, netlink.LinkSetUp(l))
	must(t, netlink.LinkSetUp(peer))
	t.Cleanup(func() { netlink.LinkDel(l) }) //nolint:errcheck // tests delete some themselves
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addAddress(t *testing.T, l netlink.Link, prefix string) {
	t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(t, err)
	a.Flags = unix.IFA_F_NODAD
	must(t, netlink.AddrAdd(l, a))
}

func addRoute(t *testing.T, l netlink.Link, prefix, via string) {
	t.Helper()
	_, dst, err := net.ParseCIDR(prefix)
	must(t, err)
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}
	if via != "" {
		r.Gw, r.Scope = net.ParseIP(via), netlink.SCOPE_UNIVERSE
	}
	must(t, netlink.RouteAdd(r))
}

func classify(t *testing.T, exclude []string, endpoints ...Endpoint) (State, map[string]Device) {
	t.Helper()
	c, err := NewClassifier(exclude)
	must(t, err)
	state, err := c.Classify(endpoints, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd01::/64")})
	must(t, err)
	byName := map[string]Device{}
	for _, d := range state.Devices {
		byName[d.Name] = d
	}
	return state, byName
}

func endpoint(key string, addresses ...string) Endpoint {
	e := Endpoint{Key: key}
	for _, a := range addresses {
		e.Addresses = append(e.Addresses, netip.MustParseAddr(a))
	}
	return e
}

func TestClassify(t *testing.T) {
	netnstest.NeedsRoot(t, "it makes network devices")
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))

	pod := veth(t, "pod1")
	addRoute(t, pod, "10.1.0.2/32", "")
	six := veth(t, "pod6")
	addRoute(t, six, "fd01::6/128", "")
	ptp := veth(t, "ptp") // as a point-to-point plugin leaves it, before its pod is known
	addAddress(t, ptp, "10.1.0.1/32")

	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}
	must(t, netlink.LinkAdd(bridge))
	t.Cleanup(func() { netlink.LinkDel(bridge) }) //nolint:errcheck // goes with the namespace
	must(t, netlink.LinkSetUp(bridge))
	addAddress(t, bridge, "10.7.0.1/24")
	port := veth(t, "port1")
	must(t, netlink.LinkSetMaster(port, bridge))
	mac, err := net.ParseMAC("02:00:00:00:00:07")
	must(t, err)
	must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: bridge.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: net.ParseIP("10.7.0.5"), HardwareAddr: mac}))
	must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER,
		State: netlink.NUD_NOARP, HardwareAddr: mac}))

	up := veth(t, "up0")
	addAddress(t, up, "192.168.9.2/24")
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.ParseIP("192.168.9.1")}))
	second := veth(t, "up1")
	addAddress(t, second, "2001:db8::2/64")
	veth(t, "bare")
	addAddress(t, veth(t, "skipme"), "172.16.0.1/24")
	down := veth(t, "down")
	addAddress(t, down, "172.17.0.1/24")
	must(t, netlink.LinkSetDown(down))

	state, devices := classify(t, []string{"skip*"},
		endpoint("ns/a", "10.1.0.2"), endpoint("ns/six", "fd01::6"), endpoint("ns/bridged", "10.7.0.5"),
		endpoint("ns/none", "10.1.0.77"), endpoint("ns/self", "192.168.9.2"), endpoint("ns/twin", "10.1.0.2"),
		endpoint("ns/unseen", "10.7.0.6"), endpoint("ns/bare"))
	roles := map[string]Role{}
	for name, d := range devices {
		if !strings.HasSuffix(name, "-x") {
			roles[name] = d.Role
		}
	}
	want := map[string]Role{
		"lo": RoleIgnored, "pod1": RolePod, "pod6": RolePod, "ptp": RoleIgnored, "cni0": RoleIgnored, "port1": RolePod,
		"up0": RoleUplink, "up1": RoleUplink, "bare": RoleIgnored, "skipme": RoleIgnored, "down": RoleIgnored,
	}
	if diff := cmp.Diff(want, roles); diff != "" {
		t.Fatal(diff)
	}
	reasons := map[string]string{
		"pod1": "route", "cni0": "bridge of pods", "up0": "default route of IPv4", "up1": "global address 2001:db8::2/64",
		"bare": "no global address", "skipme": `pattern "skip*"`, "down": "not up", "lo": "loopback", "ptp": "pod prefixes",
	}
	for name, reason := range reasons {
		if !strings.Contains(devices[name].Reason, reason) {
			t.Errorf("%s: reason %q, want one with %q", name, devices[name].Reason, reason)
		}
	}
	if d := devices["port1"]; d.Endpoint != "ns/bridged" || state.Endpoints["ns/bridged"] != d.Index {
		t.Errorf("bridged pod: %+v", d)
	}
	missing := map[string]string{
		"ns/none": "gateway", "ns/self": "address of the node itself", "ns/twin": "that of endpoint ns/a",
		"ns/unseen": "has not answered yet", "ns/bare": "has no address",
	}
	for key, reason := range missing {
		if !strings.Contains(state.Missing[key], reason) {
			t.Errorf("%s: missing because %q, want %q", key, state.Missing[key], reason)
		}
	}
	if len(state.Missing) != len(missing) {
		t.Errorf("missing %v", state.Missing)
	}
	wantAddresses := []netip.Addr{netip.MustParseAddr("192.168.9.2"), netip.MustParseAddr("2001:db8::2")}
	if diff := cmp.Diff(wantAddresses, state.UplinkAddresses, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// TestWatch sees what Classify looks at change, and a device go.
func TestWatch(t *testing.T) {
	netnstest.NeedsRoot(t, "it makes network devices")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events, err := Watch(ctx, func(err error) { t.Errorf("lost: %v", err) })
	must(t, err)
	until := func(what string, ok func() bool) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for !ok() {
			select {
			case <-events.Changed:
			case <-deadline:
				t.Fatalf("no event told of %s", what)
			}
		}
	}
	l := veth(t, "w0")
	until("the new device", func() bool { _, d := classify(t, nil); return d["w0"].Role == RoleIgnored })
	addRoute(t, l, "10.1.0.9/32", "")
	until("the route", func() bool { s, _ := classify(t, nil, endpoint("a/b", "10.1.0.9")); return len(s.Missing) == 0 })
	addAddress(t, l, "192.168.77.1/24")
	until("the address", func() bool { _, d := classify(t, nil); return d["w0"].Role == RoleUplink })
	index := uint32(l.Attrs().Index)
	must(t, netlink.LinkDel(l))
	for deadline := time.After(20 * time.Second); ; {
		select {
		case got := <-events.Gone:
			if got == index {
				return
			}
		case <-deadline:
			t.Fatal("no event told that the device is gone")
		}
	}
}

func TestBadPattern(t *testing.T) {
	if _, err := NewClassifier([]string{"["}); err == nil {
		t.Fatal("a pattern that is none was taken")
	}
}
