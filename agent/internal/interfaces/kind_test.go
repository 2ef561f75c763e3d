// SPDX-License-Identifier: Apache-2.0

package interfaces

import (
	"net/netip"
	"strings"
	"testing"
)

// fakeHost has devices of kinds that not every kernel can make, and routes
// every address to one of them.
type fakeHost struct {
	all   map[int]*link
	route int
}

func (h fakeHost) links() (map[int]*link, error)               { return h.all, nil }
func (h fakeHost) deviceOf(netip.Addr) (int, string, error)    { return h.route, "", nil }
func (h fakeHost) portOf(int, netip.Addr) (int, string, error) { return 0, "no port", nil }
func prefixes(list ...string) (p []netip.Prefix) {
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

// An overlay's device has an address of the node's pod prefix, and is what
// answers from other nodes come in by.
func TestOverlayIsAnUplink(t *testing.T) {
	h := fakeHost{all: map[int]*link{
		2: {index: 2, name: "flannel.1", kind: "vxlan", up: true, addresses: prefixes("10.244.1.0/32")},
		3: {index: 3, name: "cni0", kind: "bridge", up: true, addresses: prefixes("10.244.1.1/24")},
	}}
	state, err := (&Classifier{host: h}).Classify(nil, prefixes("10.244.1.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	if roles := state.Devices; roles[0].Role != RoleUplink || roles[1].Role != RoleIgnored {
		t.Errorf("roles are %+v", roles)
	}
}

// What is not the end of a pair must not get a pod's programs.
func TestPodNeedsAPair(t *testing.T) {
	for kind, want := range map[string]string{"veth": "", "netkit": "", "tuntap": `kind "tuntap"`, "device": `kind "device"`} {
		h := fakeHost{route: 2, all: map[int]*link{2: {index: 2, name: "dev0", kind: kind, up: true}}}
		key := "default/pod"
		state, err := (&Classifier{host: h}).Classify([]Endpoint{endpoint(key, "10.244.1.5")}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if why := state.Missing[key]; (why == "") != (want == "") || !strings.Contains(why, want) {
			t.Errorf("%s: missing because %q, want %q", kind, why, want)
		}
	}
}
