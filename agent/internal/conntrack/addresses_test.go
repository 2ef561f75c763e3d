// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/millrace-project/millrace/bpf/layout"
)

// TestRemoveAddresses ends the flows of addresses, whichever end they are, with
// their aliases, and no others; calls that come together end all of theirs.
func TestRemoveAddresses(t *testing.T) {
	table := newTable(t)
	put := func(client, backend string) (record, alias layout.CtKey[layout.V4]) {
		return add[layout.V4](t, table.maps(4).Established, flow{client, "10.9.0.1:80", backend, 6, 7, time.Hour, [2]uint32{}, [2]layout.DeviceKind{}}, uint32(len(client)))
	}
	asClient, asClientAlias := put("10.1.0.5:1000", "10.1.0.7:8080")
	asBackend, asBackendAlias := put("10.1.0.8:1000", "10.1.0.5:8080")
	other, otherAlias := put("10.1.0.50:1000", "10.1.0.7:8080")
	second, _ := put("10.1.0.6:1000", "10.1.0.7:8080")
	six, sixAlias := add[layout.V6](t, table.maps(6).Embryonic, flow{"[fd01::5]:1000", "[fd09::1]:80", "[fd01::7]:8080", 17, 10, time.Hour, [2]uint32{}, [2]layout.DeviceKind{}}, 4)

	if n, err := table.RemoveAddresses(nil); n != 0 || err != nil {
		t.Fatalf("of no address: %d, %v", n, err)
	}
	n, err := table.RemoveAddresses([]netip.Addr{netip.MustParseAddr("::ffff:10.1.0.5"), netip.MustParseAddr("fd01::5")})
	if err != nil || n != 3 {
		t.Fatalf("ended %d flows, want 3: %v", n, err)
	}
	established := table.maps(4).Established
	for _, key := range []layout.CtKey[layout.V4]{asClient, asClientAlias, asBackend, asBackendAlias} {
		if has(t, established, key) {
			t.Errorf("%v is left", key)
		}
	}
	if has(t, table.maps(6).Embryonic, six) || has(t, table.maps(6).Embryonic, sixAlias) {
		t.Error("the flow of IPv6 is left")
	}
	if !has(t, established, other) || !has(t, established, otherAlias) || !has(t, established, second) {
		t.Error("another's flow has ended")
	}

	var group sync.WaitGroup
	for i := range 8 {
		addr := netip.AddrFrom4([4]byte{10, 2, 0, byte(i)})
		key, _ := put(netip.AddrPortFrom(addr, 1000).String(), "10.1.0.7:8080")
		group.Go(func() {
			if _, err := table.RemoveAddresses([]netip.Addr{addr}); err != nil || has(t, established, key) {
				t.Errorf("%s: %v, or its flow is left", addr, err)
			}
		})
	}
	group.Wait()
	if !has(t, established, other) {
		t.Error("another's flow has ended")
	}
}
