// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/agent/internal/endpoints"
)

func addrs(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// localPod is a pod that the CNI plugin told of; the sandbox is also its device.
func localPod(name, uid, sandbox string, addresses ...string) endpoints.Endpoint {
	return endpoints.Endpoint{
		Attachment: endpoints.Attachment{Network: "pods", Container: sandbox, Interface: "eth0"},
		Namespace:  "default", Name: name, UID: uid, Addresses: addrs(addresses...), Device: sandbox, Index: 7,
	}
}

// TestMerge puts together what calculators and the CNI plugin say of pods.
func TestMerge(t *testing.T) {
	const key = "default/p"
	replaced := localPod("p", "new", "s2", "10.1.0.6")
	replaced.Replaces = "old"
	again := localPod("p", "u", "s2", "10.1.0.6")
	again.Added = time.Unix(1, 0)
	second := localPod("p", "u", "s1", "10.9.0.5")
	second.Interface, second.Added = "net1", time.Unix(1, 0)
	gone := endpoints.Ended{Key: key, UID: "u", Addresses: addrs("10.1.0.5", "fd01::5")}
	for _, c := range []struct {
		name      string
		told      map[string]told
		local     []endpoints.Endpoint
		ended     []endpoints.Ended
		want      []string
		conflicts int
	}{
		{name: "calculator alone", told: map[string]told{key: {"u", addrs("10.1.0.5")}}, want: []string{"default/p u [10.1.0.5] calculator"}},
		{name: "plugin alone", local: []endpoints.Endpoint{localPod("p", "u", "s1", "10.1.0.5")}, want: []string{"default/p u [10.1.0.5] s1"}},
		{name: "both", told: map[string]told{key: {"u", addrs("10.1.0.5", "fd01::5")}},
			local: []endpoints.Endpoint{localPod("p", "u", "s1", "10.1.0.5")}, want: []string{"default/p u [10.1.0.5 fd01::5] calculator s1"}},
		{name: "calculator of before", told: map[string]told{key: {"old", addrs("10.1.0.5")}},
			local: []endpoints.Endpoint{replaced}, want: []string{"default/p new [10.1.0.6] s2"}},
		{name: "calculator knows a newer one", told: map[string]told{key: {"newest", addrs("10.1.0.7")}},
			local: []endpoints.Endpoint{replaced}, want: []string{"default/p newest [10.1.0.7] calculator"}, conflicts: 1},
		{name: "sandbox made anew", local: []endpoints.Endpoint{localPod("p", "u", "s1", "10.1.0.5"), again}, want: []string{"default/p u [10.1.0.6] s2"}},
		{name: "two interfaces", local: []endpoints.Endpoint{localPod("p", "u", "s1", "10.1.0.5"), second},
			want: []string{"default/p u [10.9.0.5] s1", "default/p/eth0 u [10.1.0.5] s1"}},
		{name: "address of a pod of before", told: map[string]told{"default/old": {"o", addrs("10.1.0.5", "10.1.0.8")}, "default/older": {"oo", addrs("10.1.0.5")}},
			local: []endpoints.Endpoint{localPod("p", "u", "s1", "10.1.0.5")}, want: []string{"default/old o [10.1.0.8] calculator", "default/p u [10.1.0.5] s1"}},
		{name: "address given anew", local: []endpoints.Endpoint{localPod("lost", "l", "s0", "10.1.0.5", "10.1.0.6"), localPod("p", "u", "s1", "10.1.0.5")},
			want: []string{"default/lost l [10.1.0.6] s0", "default/p u [10.1.0.5] s1"}},
		{name: "ended", told: map[string]told{key: {"u", addrs("10.1.0.5")}}, ended: []endpoints.Ended{gone}},
		{name: "ended, and a new sandbox", told: map[string]told{key: {"u", addrs("10.1.0.9")}}, ended: []endpoints.Ended{gone},
			want: []string{"default/p u [10.1.0.9] calculator"}},
		{name: "ended, and a new pod", told: map[string]told{key: {"u2", addrs("10.1.0.5")}}, ended: []endpoints.Ended{gone},
			want: []string{"default/p u2 [10.1.0.5] calculator"}},
	} {
		merged, conflicts := merge(c.told, endpoints.Known{Endpoints: c.local, Ended: c.ended})
		var got []string
		for _, key := range slices.Sorted(maps.Keys(merged)) {
			e := merged[key]
			line := fmt.Sprintf("%s %s %v", key, e.uid, e.addresses)
			if e.calculator {
				line += " calculator"
			}
			if e.local != nil {
				line += " " + e.local.Container
			}
			got = append(got, line)
		}
		if !slices.Equal(got, c.want) || len(conflicts) != c.conflicts {
			t.Errorf("%s: got\n%s\nconflicts %v; want\n%s", c.name, strings.Join(got, "\n"), conflicts, strings.Join(c.want, "\n"))
		}
	}
}
