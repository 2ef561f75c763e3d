// SPDX-License-Identifier: Apache-2.0

package affinity

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/agent/internal/netnstest"
	"github.com/millrace-project/millrace/bpf/layout"
)

func newTable(t *testing.T) *Table {
	t.Helper()
	netnstest.NeedsRoot(t, "it creates BPF maps")
	create := func(key, value uint32) *ebpf.Map {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: key, ValueSize: value, MaxEntries: 8192})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	return &Table{V4: create(16, 12), V6: create(28, 24)}
}

func put[A layout.IP](t *testing.T, m *ebpf.Map, key layout.AffinityKey[A], backend string, idle time.Duration) {
	t.Helper()
	ap := netip.MustParseAddrPort(backend)
	addr, _ := layout.FromAddr[A](ap.Addr())
	v := layout.Affinity[A]{BackendAddr: addr, BackendPort: layout.Port(ap.Port()), Used: layout.AffinityTick(clock() - idle)}
	if err := m.Put(key, v); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, table *Table) []Client {
	t.Helper()
	var all []Client
	if err := table.ForEach(func(c Client) error { all = append(all, c); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTable(t *testing.T) {
	table := newTable(t)
	const hour = time.Hour
	key, _ := layout.NewAffinityKey[layout.V4](netip.MustParseAddr("192.0.2.1"), 7)
	put(t, table.V4, key, "10.1.0.1:80", hour)
	put(t, table.V4, layout.NewSocketAffinityKey[layout.V4](1<<40|9, 7), "10.1.0.2:80", 0)
	put(t, table.V6, layout.NewSocketAffinityKey[layout.V6](9, 8), "[fd01::1]:80", time.Minute)

	all := list(t, table)
	slices.SortFunc(all, func(a, b Client) int { return a.Backend.Compare(b.Backend) })
	want := []Client{
		{Family: 4, Addr: netip.MustParseAddr("192.0.2.1"), ServiceID: 7, Backend: netip.MustParseAddrPort("10.1.0.1:80"), Idle: hour},
		{Family: 4, NetnsCookie: 1<<40 | 9, ServiceID: 7, Backend: netip.MustParseAddrPort("10.1.0.2:80")},
		{Family: 6, NetnsCookie: 9, ServiceID: 8, Backend: netip.MustParseAddrPort("[fd01::1]:80"), Idle: time.Minute},
	}
	for i := range all {
		if off := all[i].Idle - want[i].Idle; off < -20*time.Millisecond || off > 10*time.Second {
			t.Errorf("%d: idle for %s, want %s", i, all[i].Idle, want[i].Idle)
		}
		all[i].Idle = want[i].Idle
	}
	if !slices.Equal(all, want) {
		t.Fatalf("got %+v\nwant %+v", all, want)
	}
	stop := errors.New("stop")
	seen := 0
	if err := table.ForEach(func(Client) error { seen++; return stop }); !errors.Is(err, stop) || seen != 1 {
		t.Errorf("%d clients, %v", seen, err)
	}
}

func TestForget(t *testing.T) {
	table := newTable(t)
	for i := range 2000 {
		cookie := uint64(i + 1)
		put(t, table.V4, layout.NewSocketAffinityKey[layout.V4](cookie, uint32(i%2)), "10.1.0.1:80", time.Hour)
		put(t, table.V6, layout.NewSocketAffinityKey[layout.V6](cookie, uint32(i%2)), "[fd01::1]:80", time.Duration(i)*time.Second)
	}
	left, err := table.Forget(func() func(Client) bool {
		return func(c Client) bool { return c.ServiceID == 1 && (c.Family == 4 || c.Idle >= 1000*time.Second) }
	})
	if err != nil || left != (Counts{V4: 1000, V6: 1500}) {
		t.Fatalf("%+v left, %v", left, err)
	}
	all := list(t, table)
	if len(all) != 2500 {
		t.Errorf("%d clients left", len(all))
	}
	for _, c := range all {
		if c.ServiceID == 1 && (c.Family == 4 || c.Idle > 1100*time.Second) {
			t.Errorf("still there: %+v", c)
		}
	}
}

// What comes after it was asked what is over is kept, and so is what is changed
// between the look at it and its removal.
func TestForgetKeepsWhatIsNew(t *testing.T) {
	table := newTable(t)
	newer, _ := layout.NewAffinityKey[layout.V4](netip.MustParseAddr("192.0.2.1"), 7)
	back, _ := layout.NewAffinityKey[layout.V4](netip.MustParseAddr("192.0.2.2"), 7)
	put(t, table.V4, back, "10.1.0.1:80", time.Hour)
	left, err := table.Forget(func() func(Client) bool {
		put(t, table.V4, newer, "10.1.0.1:80", 0)
		return func(c Client) bool {
			if c.Addr == netip.MustParseAddr("192.0.2.2") {
				put(t, table.V4, back, "10.1.0.1:80", 0) // it comes again right after this look
			}
			return true
		}
	})
	if err != nil || left.V4 != 2 || len(list(t, table)) != 2 {
		t.Errorf("%+v left, %v", left, err)
	}
}
