// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// host is the node as one story sees it.
type host struct {
	*family
	t      testing.TB
	proto  uint8
	config layout.Config
	next   uint32 // first free element of the backends array

	// Of the services that are programmed.
	id       uint32
	affinity uint32 // seconds
	port     uint16 // of a client's last connection

	runFlags uint32 // of every run of a program
}

const (
	snatFirst = 50000
	snatLast  = 50099
)

// newHost empties the node for a story.
func newHost(t testing.TB, f *family, proto uint8) *host {
	t.Helper()
	h := &host{family: f, t: t, proto: proto, id: 7, port: 10000}
	for _, fm := range []*bpf.FamilyMaps{node.d.V4, node.d.V6} {
		for _, m := range []*ebpf.Map{fm.Frontends, fm.Routes, fm.Fragments, fm.Affinity, fm.Embryonic.Current(), fm.Established.Current()} {
			h.clear(m)
		}
	}
	h.clear(node.d.Counters)
	h.config = layout.Config{
		NodeAddrV4: families[0].node.As4(), NodeAddrV6: families[1].node.As16(),
		SnatPortFirst: snatFirst, SnatPortLast: snatLast, Flags: layout.ConfigEnabled,
		TCPSynTimeout: 60, TCPEstablishedTimeout: 3600, TCPCloseTimeout: 10, UDPTimeout: 30, UDPStreamTimeout: 120,
	}
	h.configure(func(*layout.Config) {})
	h.route(h.podA, layout.RoutePod|layout.RouteLocal)
	h.route(h.podB, layout.RoutePod|layout.RouteLocal)
	h.route(h.podC, layout.RoutePod)
	h.route(h.node, layout.RouteNode|layout.RouteLocal)
	h.route(h.node2, layout.RouteNode)
	return h
}

// clear empties a map.
func (h *host) clear(m *ebpf.Map) {
	h.t.Helper()
	var key, last []byte
	for {
		if err := m.NextKey(nil, &key); errors.Is(err, ebpf.ErrKeyNotExist) {
			return
		} else if err != nil {
			h.t.Fatalf("next key: %v", err)
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			h.t.Fatalf("empty map: %v", err)
		}
		if last != nil && string(last) == string(key) {
			h.t.Fatal("a map does not get empty")
		}
		last = append(last[:0], key...)
	}
}

// configure changes the settings.
func (h *host) configure(change func(*layout.Config)) {
	h.t.Helper()
	change(&h.config)
	if err := node.d.WriteConfig(h.config); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) fastPath() {
	h.configure(func(c *layout.Config) { c.Flags |= layout.ConfigFastPath })
}

func (h *host) route(a netip.Addr, flags layout.RouteFlags) {
	h.t.Helper()
	p := netip.PrefixFrom(a, a.BitLen())
	var err error
	if h.n == 4 {
		key, _ := layout.NewRouteKey[layout.V4](p)
		err = node.d.V4.Routes.Put(key, layout.Route{Flags: flags})
	} else {
		key, _ := layout.NewRouteKey[layout.V6](p)
		err = node.d.V6.Routes.Put(key, layout.Route{Flags: flags})
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// where is a backend.
type where struct {
	netip.AddrPort
	flags layout.BackendFlags
}

func local(a netip.AddrPort) where  { return where{a, layout.BackendLocal} }
func remote(a netip.AddrPort) where { return where{a, 0} }

// service programs a frontend of the story's protocol with backends.
func (h *host) service(frontend netip.AddrPort, flags layout.FrontendFlags, backends ...where) {
	h.t.Helper()
	if h.n == 4 {
		program[layout.V4](h, node.d.V4, frontend, flags, backends)
	} else {
		program[layout.V6](h, node.d.V6, frontend, flags, backends)
	}
}

func program[A layout.IP](h *host, m *bpf.FamilyMaps, frontend netip.AddrPort, flags layout.FrontendFlags, backends []where) {
	h.t.Helper()
	var elems []layout.Backend[A]
	// Sorted, as the programs rely on.
	backends = slices.SortedFunc(slices.Values(backends), func(a, b where) int { return a.Compare(b.AddrPort) })
	for _, b := range backends {
		e, ok := layout.NewBackend[A](b.AddrPort, b.flags)
		if !ok {
			h.t.Fatalf("backend %s is of the other family", b.AddrPort)
		}
		elems = append(elems, e)
	}
	first := h.next
	h.next += uint32(len(elems))
	if len(elems) > 0 {
		if err := bpf.WriteBackends(m, first, elems); err != nil {
			h.t.Fatal(err)
		}
	}
	key, _ := layout.NewFrontendKey[A](frontend, h.proto)
	value := layout.Frontend{
		ServiceID: h.id, FirstBackend: first, BackendCount: uint32(len(elems)), Flags: flags, AffinityTimeout: h.affinity,
	}
	if err := m.Frontends.Put(key, value); err != nil {
		h.t.Fatal(err)
	}
}

// each tells a story in both families and with the given protocols.
func each(t *testing.T, protos []uint8, story func(t *testing.T, h *host)) {
	t.Helper()
	if node.d == nil {
		t.Skip("not root: programs cannot be loaded")
	}
	for _, f := range families {
		for _, proto := range protos {
			name := f.name + "/" + strings.ToLower(map[uint8]string{layout.ProtoTCP: "TCP", layout.ProtoUDP: "UDP"}[proto])
			t.Run(name, func(t *testing.T) { story(t, newHost(t, f, proto)) })
		}
	}
}

var (
	both = []uint8{layout.ProtoTCP, layout.ProtoUDP}
	tcp  = []uint8{layout.ProtoTCP}
	udp  = []uint8{layout.ProtoUDP}
)
