// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

func create(t testing.TB, name string, key, value, entries uint32, kind ebpf.MapType) *ebpf.Map {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it creates BPF maps")
	}
	spec := &ebpf.MapSpec{Name: name, Type: kind, KeySize: key, ValueSize: value, MaxEntries: entries}
	if kind == ebpf.Hash {
		spec.Flags = unix.BPF_F_NO_PREALLOC
	}
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatalf("create map %s: %v", name, err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func newTable(t *testing.T) *Table {
	t.Helper()
	family := func(f string, key, value uint32) Maps {
		return Maps{
			Established:         create(t, "established_"+f, key, value, 20000, ebpf.Hash),
			Embryonic:           create(t, "embryonic_"+f, key, value, 20000, ebpf.LRUHash),
			EstablishedDraining: create(t, "drain_"+f, key, value, 20000, ebpf.Hash),
		}
	}
	maps := map[int]Maps{
		4: family("v4", uint32(sizeof[layout.CtKeyV4]()), uint32(sizeof[layout.CtEntryV4]())),
		6: family("v6", uint32(sizeof[layout.CtKeyV6]()), uint32(sizeof[layout.CtEntryV6]())),
	}
	return New(func(f int) Maps { return maps[f] })
}

// flow is a record and its frontend alias.
type flow struct {
	client, frontend, backend string
	proto                     uint8
	service                   uint32
	ttl                       time.Duration
	out                       [2]uint32
	kind                      [2]layout.DeviceKind
}

func add[A layout.IP](t *testing.T, m *ebpf.Map, f flow, nonce uint32) (record, alias layout.CtKey[A]) {
	t.Helper()
	client, frontend, backend := netip.MustParseAddrPort(f.client), netip.MustParseAddrPort(f.frontend), netip.MustParseAddrPort(f.backend)
	record, _, _ = layout.NewCtKey[A](client, backend, f.proto)
	alias, _, _ = layout.NewCtKey[A](client, frontend, f.proto)
	raw := func(ap netip.AddrPort) A {
		a, ok := layout.FromAddr[A](ap.Addr())
		if !ok {
			t.Fatalf("%s is of the wrong family", ap)
		}
		return a
	}
	expires := uint64(int64(bpf.CoarseNow()) + int64(f.ttl))
	e := layout.CtEntry[A]{
		Expires: expires, Nonce: nonce, Kind: layout.CtRecord, Flags: layout.CtDNAT, Main: record, ServiceID: f.service,
		ClientAddr: raw(client), ClientPort: layout.Port(client.Port()),
		FrontendAddr: raw(frontend), FrontendPort: layout.Port(frontend.Port()),
		BackendAddr: raw(backend), BackendPort: layout.Port(backend.Port()),
		SourceAddr: raw(client), SourcePort: layout.Port(client.Port()),
		OutIfindex: f.out, OutKind: f.kind,
	}
	a := layout.CtEntry[A]{Expires: expires, Nonce: nonce, Kind: layout.CtAliasFrontend, Main: record}
	for k, v := range map[layout.CtKey[A]]*layout.CtEntry[A]{record: &e, alias: &a} {
		if err := m.Put(&k, v); err != nil {
			t.Fatal(err)
		}
	}
	return record, alias
}

func has[A layout.IP](t *testing.T, m *ebpf.Map, k layout.CtKey[A]) bool {
	t.Helper()
	var e layout.CtEntry[A]
	err := m.Lookup(&k, &e)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func sizeof[T any]() uintptr { return unsafe.Sizeof(*new(T)) }

func TestSweep(t *testing.T) {
	table := newTable(t)
	live, liveAlias := add[layout.V4](t, table.maps(4).Established, flow{"10.0.0.1:1000", "10.9.0.1:80", "10.0.0.2:8080", 6, 7, time.Hour, [2]uint32{}, [2]layout.DeviceKind{}}, 1)
	dead, deadAlias := add[layout.V4](t, table.maps(4).Embryonic, flow{"10.0.0.1:1001", "10.9.0.1:80", "10.0.0.2:8080", 6, 8, -time.Second, [2]uint32{}, [2]layout.DeviceKind{}}, 2)
	drained, _ := add[layout.V4](t, table.maps(4).EstablishedDraining, flow{"10.0.0.1:1002", "10.9.0.1:80", "10.0.0.2:8080", 6, 9, -time.Second, [2]uint32{}, [2]layout.DeviceKind{}}, 3)
	six, sixAlias := add[layout.V6](t, table.maps(6).Established, flow{"[fd00::1]:1000", "[fd09::1]:80", "[fd00::2]:8080", 17, 10, time.Hour, [2]uint32{}, [2]layout.DeviceKind{}}, 4)
	// An alias of a record that another flow has replaced since.
	var orphan layout.CtEntryV4
	if err := table.maps(4).Established.Lookup(&liveAlias, &orphan); err != nil {
		t.Fatal(err)
	}
	orphan.Nonce = 99
	orphanKey, _, _ := layout.NewCtKey[layout.V4](netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.9.0.9:80"), 6)
	if err := table.maps(4).Established.Put(&orphanKey, &orphan); err != nil {
		t.Fatal(err)
	}
	var got PassStats
	s := NewSweeper(table, Observer{
		Begin:  func() map[uint32]struct{} { return map[uint32]struct{}{7: {}, 8: {}, 10: {}, 55: {}} },
		End:    func(p PassStats) { got = p },
		Failed: func(err error) { t.Error(err) },
	})
	if err := s.Pass(); err != nil {
		t.Fatal(err)
	}
	// Aliases may stand before their records: what the first pass left of those
	// the second finds.
	removed := got.Removed
	if err := s.Pass(); err != nil {
		t.Fatal(err)
	}
	if removed += got.Removed; removed != 5 {
		t.Errorf("removed %d entries, want 5", removed)
	}
	if !has(t, table.maps(4).Established, live) || !has(t, table.maps(4).Established, liveAlias) || !has(t, table.maps(6).Established, six) || !has(t, table.maps(6).Established, sixAlias) {
		t.Error("a live flow was removed")
	}
	if has(t, table.maps(4).Embryonic, dead) || has(t, table.maps(4).Embryonic, deadAlias) || has(t, table.maps(4).EstablishedDraining, drained) || has(t, table.maps(4).Established, orphanKey) {
		t.Error("something dead is left")
	}
	if fmt.Sprint(got.Unused) != "map[8:{} 55:{}]" {
		t.Errorf("unused numbers %v", got.Unused)
	}
	if got.Entries["established_v4"] != 2 || got.Entries["established_v6"] != 2 || got.Entries["embryonic_v4"] != 0 {
		t.Errorf("entries %v", got.Entries)
	}
}

// TestManyEntries sweeps more entries than a batch and a budget hold.
func TestManyEntries(t *testing.T) {
	table := newTable(t)
	for i := range 6000 {
		ttl := time.Hour
		if i%3 == 0 {
			ttl = -time.Second
		}
		add[layout.V4](t, table.maps(4).Established, flow{fmt.Sprintf("10.0.%d.%d:1000", i/250, i%250), "10.9.0.1:80", "10.1.0.2:8080", 6, 7, ttl, [2]uint32{}, [2]layout.DeviceKind{}}, uint32(i))
	}
	var got PassStats
	waits := 0
	s := NewSweeper(table, Observer{Begin: func() map[uint32]struct{} { return nil }, End: func(p PassStats) { got = p }, Failed: func(err error) { t.Error(err) }})
	for range 2 {
		if err := s.pass(func() bool { waits++; return true }); err != nil {
			t.Fatal(err)
		}
	}
	if got.Entries["established_v4"] != 8000 {
		t.Errorf("%d entries are left, want 8000", got.Entries["established_v4"])
	}
	if waits < 3 {
		t.Errorf("the sweeper paused %d times: it does not keep to its budget", waits)
	}
	flows := 0
	if err := table.ForEach(func(f Flow) error {
		flows++
		if f.Frontend.String() != "10.9.0.1:80" || !f.Established || f.ServiceID != 7 {
			t.Errorf("flow %+v", f)
		}
		return nil
	}); err != nil || flows != 4000 {
		t.Errorf("%d flows, %v", flows, err)
	}
}

func TestStaleUDP(t *testing.T) {
	table := newTable(t)
	f := func(proto uint8, service uint32, backend string) flow {
		return flow{"10.0.0.1:53", "10.9.0.1:53", backend, proto, service, time.Hour, [2]uint32{}, [2]layout.DeviceKind{}}
	}
	kept, _ := add[layout.V4](t, table.maps(4).Established, f(17, 1, "10.0.0.2:53"), 1)
	gone, _ := add[layout.V4](t, table.maps(4).Established, f(17, 1, "10.0.0.3:53"), 2)
	tcp, _ := add[layout.V4](t, table.maps(4).Established, f(6, 1, "10.0.0.3:53"), 3)
	plain, _ := add[layout.V4](t, table.maps(4).Embryonic, f(17, 0, "10.0.0.4:53"), 4)
	n, err := table.RemoveStaleUDP(func(frontend, backend netip.AddrPort, proto uint8) bool {
		return frontend.String() == "10.9.0.1:53" && proto == 17 && backend.Addr().String() == "10.0.0.2"
	})
	if err != nil || n != 1 {
		t.Fatalf("removed %d, %v", n, err)
	}
	if !has(t, table.maps(4).Established, kept) || has(t, table.maps(4).Established, gone) || !has(t, table.maps(4).Established, tcp) || !has(t, table.maps(4).Embryonic, plain) {
		t.Fatal("the wrong flows were ended")
	}
}

func TestForgetDevices(t *testing.T) {
	table := newTable(t)
	f := func(client string, out [2]uint32, kind [2]layout.DeviceKind) flow {
		return flow{client, "10.9.0.1:80", "10.0.0.2:80", 6, 1, time.Hour, out, kind}
	}
	pod, uplink := layout.DevicePod, layout.DeviceUplink
	ofPod, _ := add[layout.V4](t, table.maps(4).Established, f("10.0.0.1:1", [2]uint32{5, 6}, [2]layout.DeviceKind{pod, uplink}), 1)
	other, _ := add[layout.V4](t, table.maps(4).Established, f("10.0.0.1:2", [2]uint32{7, 6}, [2]layout.DeviceKind{pod, pod}), 2)
	ofUplink, _ := add[layout.V4](t, table.maps(4).Established, f("10.0.0.1:3", [2]uint32{7, 5}, [2]layout.DeviceKind{pod, uplink}), 3)
	if n, err := table.ForgetDevices(4, 5); err != nil || n != 2 {
		t.Fatalf("%d flows, %v", n, err)
	}
	if has(t, table.maps(4).Established, ofPod) || !has(t, table.maps(4).Established, other) {
		t.Fatal("the wrong flow was ended")
	}
	var e layout.CtEntryV4
	if err := table.maps(4).Established.Lookup(&ofUplink, &e); err != nil || e.OutIfindex != [2]uint32{} || e.Nonce != 3 {
		t.Fatalf("the uplink's flow: %v %v", e.OutIfindex, err)
	}
}

// TestPromotedDuringPass moves a flow to the established ones while a pass looks
// at these: the pass meets it all the same.
func TestPromotedDuringPass(t *testing.T) {
	table := newTable(t)
	f := flow{client: "10.1.0.9:4000", frontend: "10.9.0.1:53", backend: "10.1.0.7:53", proto: layout.ProtoUDP, service: 7, ttl: time.Minute}
	key, _ := add[layout.V4](t, table.maps(4).Embryonic, f, 1)
	f.client, f.service = "10.1.0.9:4001", 8
	add[layout.V4](t, table.maps(4).Established, f, 2)
	met := false
	_, err := each(table, 4, func(_ *layout.CtKey[layout.V4], e *layout.CtEntry[layout.V4]) verdict {
		if e.Kind != layout.CtRecord || e.ServiceID == 7 {
			met = met || e.Kind == layout.CtRecord
			return keep
		}
		var record layout.CtEntry[layout.V4]
		if err := errors.Join(table.maps(4).Embryonic.Lookup(&key, &record), table.maps(4).Established.Put(&key, &record),
			table.maps(4).Embryonic.Delete(&key)); err != nil {
			t.Fatal(err)
		}
		return keep
	})
	if err != nil || !met {
		t.Fatalf("the flow moved past the pass: %v", err)
	}
}
