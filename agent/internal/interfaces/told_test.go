// SPDX-License-Identifier: Apache-2.0

package interfaces

import (
	"net/netip"
	"strings"
	"testing"
)

// bridged is a host of which the bridge has seen some addresses.
type bridged struct {
	fakeHost
	seen map[netip.Addr]int
}

func (h bridged) portOf(_ int, addr netip.Addr) (int, string, error) {
	if port := h.seen[addr]; port != 0 {
		return port, "", nil
	}
	return 0, addr.String() + " has not answered yet", nil
}

// TestTold takes the device that the CNI plugin told of, before all that is found.
func TestTold(t *testing.T) {
	h := fakeHost{route: 3, all: map[int]*link{
		2: {index: 2, name: "cni0", kind: "bridge", up: true, addresses: prefixes("10.7.0.1/24")},
		3: {index: 3, name: "veth3", kind: "veth", up: true},
		4: {index: 4, name: "veth4", kind: "veth", up: true, masterIndex: 2},
		5: {index: 5, name: "ipvl0", kind: "ipvlan", up: true},
	}}
	c := &Classifier{host: h, ports: map[behind]int{}}
	told := func(key, device string, index uint32) Endpoint {
		e := endpoint(key, "10.1.0.5")
		e.Device, e.Index = device, index
		return e
	}
	state, err := c.Classify([]Endpoint{
		endpoint("ns/a-routed", "10.1.0.5"), told("ns/told", "veth3", 3), told("ns/port", "veth4", 4), told("ns/gone", "veth9", 9),
		told("ns/renamed", "veth0", 4), told("ns/kind", "ipvl0", 5),
	}, nil)
	must(t, err)
	for key, want := range map[string]uint32{"ns/told": 3, "ns/port": 4} {
		if state.Endpoints[key] != want || state.By[key] != ByCNI {
			t.Errorf("%s: device %d by %q", key, state.Endpoints[key], state.By[key])
		}
	}
	for key, want := range map[string]string{
		"ns/a-routed": "that of endpoint ns/told", "ns/gone": "is gone", "ns/renamed": "is gone", "ns/kind": "ipvlan",
	} {
		if !strings.Contains(state.Missing[key], want) {
			t.Errorf("%s: missing because %q, want %q", key, state.Missing[key], want)
		}
	}
	for _, d := range state.Devices {
		if d.Name == "cni0" && (d.Role != RoleIgnored || d.Reason != "bridge of pods") {
			t.Errorf("the bridge of a told device: %+v", d)
		}
	}
}

// TestSilentBehindABridge keeps the port of a pod that the bridge has forgotten,
// as long as it is one.
func TestSilentBehindABridge(t *testing.T) {
	addr := netip.MustParseAddr("10.7.0.5")
	port := &link{index: 4, name: "veth4", kind: "veth", up: true, masterIndex: 2}
	h := bridged{fakeHost: fakeHost{route: 2, all: map[int]*link{2: {index: 2, name: "cni0", kind: "bridge", up: true}, 4: port}},
		seen: map[netip.Addr]int{addr: 4}}
	c := &Classifier{host: h, ports: map[behind]int{}}
	look := func(what string, found bool) {
		t.Helper()
		state, err := c.Classify([]Endpoint{endpoint("ns/p", "10.7.0.5")}, nil)
		must(t, err)
		if (state.Endpoints["ns/p"] == 4 && state.By["ns/p"] == ByBridge) != found {
			t.Fatalf("%s: %+v", what, state)
		}
	}
	look("seen", true)
	delete(h.seen, addr)
	look("silent", true)
	port.masterIndex = 0
	look("no port of the bridge any more", false)
	port.masterIndex = 2
	look("a port again", true)
	delete(h.all, 4)
	look("gone", false)
	h.all[4] = port
	look("another device with the same number", false)
}
