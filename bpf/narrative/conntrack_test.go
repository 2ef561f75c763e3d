// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// flow is a conntrack entry as the tests look at it.
type flow struct {
	kind        layout.CtKind
	state       layout.CtState
	flags       layout.CtFlags
	established bool
	draining    bool
	client      netip.AddrPort
	frontend    netip.AddrPort
	source      netip.AddrPort
	backend     netip.AddrPort
	outKind     [2]layout.DeviceKind
	expires     uint64
	nonce       uint32
}

// entry finds the conntrack entry under the tuple of two ends, where programs do.
func (h *host) entry(a, b netip.AddrPort) (flow, bool) {
	h.t.Helper()
	if h.n == 4 {
		return lookup[layout.V4](h, node.d.V4, a, b)
	}
	return lookup[layout.V6](h, node.d.V6, a, b)
}

func lookup[A layout.IP](h *host, maps *bpf.FamilyMaps, a, b netip.AddrPort) (flow, bool) {
	h.t.Helper()
	key, _, ok := layout.NewCtKey[A](a, b, h.proto)
	if !ok {
		h.t.Fatalf("%s and %s are not of one family", a, b)
	}
	for i, m := range conntrackMaps(maps) {
		var e layout.CtEntry[A]
		if m != nil && m.Lookup(key, &e) == nil {
			return flow{kind: e.Kind, state: e.State, flags: e.Flags, established: i%2 == 0, draining: i > 1, client: e.Client(),
				frontend: e.Frontend(), source: e.Source(), backend: e.Backend(), outKind: e.OutKind, expires: e.Expires,
				nonce: e.Nonce}, true
		}
	}
	return flow{}, false
}

// conntrackMaps are a family's, in the order in which programs look; nil where
// nothing drains.
func conntrackMaps(maps *bpf.FamilyMaps) []*ebpf.Map {
	established, establishedDraining := maps.Established.Maps()
	embryonic, embryonicDraining := maps.Embryonic.Maps()
	return []*ebpf.Map{established, embryonic, establishedDraining, embryonicDraining}
}

// record is the flow of a backend and its client; it must exist.
func (h *host) record(source, backend netip.AddrPort) flow {
	h.t.Helper()
	f, ok := h.entry(source, backend)
	if !ok || f.kind != layout.CtRecord {
		h.t.Fatalf("no record of %s and %s", source, backend)
	}
	return f
}

// change rewrites the entry of two ends in the map where it is.
func (h *host) change(a, b netip.AddrPort, f func(expires *uint64, nonce *uint32)) {
	h.t.Helper()
	if h.n == 4 {
		change[layout.V4](h, conntrackMaps(node.d.V4), a, b, f)
	} else {
		change[layout.V6](h, conntrackMaps(node.d.V6), a, b, f)
	}
}

func change[A layout.IP](h *host, maps []*ebpf.Map, a, b netip.AddrPort, f func(expires *uint64, nonce *uint32)) {
	h.t.Helper()
	key, _, _ := layout.NewCtKey[A](a, b, h.proto)
	for _, m := range maps {
		var e layout.CtEntry[A]
		if m == nil || m.Lookup(key, &e) != nil {
			continue
		}
		f(&e.Expires, &e.Nonce)
		if err := m.Update(key, e, ebpf.UpdateExist); err != nil {
			h.t.Fatal(err)
		}
		return
	}
	h.t.Fatalf("no entry of %s and %s", a, b)
}

// remove deletes the entry of two ends.
func (h *host) remove(a, b netip.AddrPort) {
	h.t.Helper()
	maps := []*ebpf.Map{node.d.V4.Embryonic.Current(), node.d.V4.Established.Current()}
	var key any
	if h.n == 4 {
		key, _, _ = layout.NewCtKey[layout.V4](a, b, h.proto)
	} else {
		key, _, _ = layout.NewCtKey[layout.V6](a, b, h.proto)
		maps = []*ebpf.Map{node.d.V6.Embryonic.Current(), node.d.V6.Established.Current()}
	}
	for _, m := range maps {
		if m.Delete(key) == nil {
			return
		}
	}
	h.t.Fatalf("no entry of %s and %s", a, b)
}

// outIfindex sets the device by which a flow's first direction left.
func (h *host) outIfindex(a, b netip.AddrPort, ifindex uint32) {
	h.t.Helper()
	if h.n == 4 {
		setOutIfindex[layout.V4](h, node.d.V4.Established.Current(), a, b, ifindex)
	} else {
		setOutIfindex[layout.V6](h, node.d.V6.Established.Current(), a, b, ifindex)
	}
}

func setOutIfindex[A layout.IP](h *host, m *ebpf.Map, a, b netip.AddrPort, ifindex uint32) {
	h.t.Helper()
	key, _, _ := layout.NewCtKey[A](a, b, h.proto)
	var e layout.CtEntry[A]
	if err := m.Lookup(key, &e); err != nil {
		h.t.Fatal(err)
	}
	e.OutIfindex[layout.CtOrig] = ifindex
	if err := m.Put(key, e); err != nil {
		h.t.Fatal(err)
	}
}
