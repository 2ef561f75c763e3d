// SPDX-License-Identifier: Apache-2.0

package services

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// everything is all tables that services touch.
type everything interface {
	Tables
	tables.IDs
}

// memory is tables without a kernel.
type memory struct {
	frontends map[tables.FrontendKey]tables.Frontend
	backends  [2][]tables.Backend
	ids       map[tables.IDKey]uint32
}

func newMemory(capacity int) *memory {
	m := &memory{frontends: map[tables.FrontendKey]tables.Frontend{}, ids: map[tables.IDKey]uint32{}}
	for f := range m.backends {
		m.backends[f] = make([]tables.Backend, capacity)
	}
	return m
}

func (m *memory) ReadFrontends(f tables.Family, each func(tables.FrontendEntry)) error {
	for k, v := range m.frontends {
		if k.Family == f {
			each(tables.FrontendEntry{Key: k, Value: v})
		}
	}
	return nil
}

func (m *memory) PutFrontends(_ tables.Family, entries []tables.FrontendEntry) error {
	for _, e := range entries {
		m.frontends[e.Key] = e.Value
	}
	return nil
}

func (m *memory) DeleteFrontends(_ tables.Family, keys []tables.FrontendKey) error {
	for _, k := range keys {
		delete(m.frontends, k)
	}
	return nil
}

func (m *memory) FrontendCapacity(tables.Family) uint32 { return 4096 }

func (m *memory) BackendCapacity(f tables.Family) uint32 { return uint32(len(m.backends[f])) }

func (m *memory) ReadBackends(f tables.Family, first, n uint32) ([]tables.Backend, error) {
	return slices.Clone(m.backends[f][first : first+n]), nil
}

func (m *memory) PutBackends(f tables.Family, writes []tables.BackendWrite) error {
	for _, w := range writes {
		copy(m.backends[f][w.First:], w.Backends)
	}
	return nil
}

func (m *memory) ReadIDs(each func(tables.IDEntry)) error {
	for k, v := range m.ids {
		each(tables.IDEntry{Key: k, ID: v})
	}
	return nil
}

func (m *memory) PutIDs(entries []tables.IDEntry) error {
	for _, e := range entries {
		m.ids[e.Key] = e.ID
	}
	return nil
}

func (m *memory) DeleteIDs(keys []tables.IDKey) error {
	for _, k := range keys {
		delete(m.ids, k)
	}
	return nil
}

// realMaps is tables over maps of the kernel.
func realMaps(t *testing.T, capacity uint32) everything {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it creates BPF maps")
	}
	create := func(name string, kind ebpf.MapType, key, value, entries uint32) *ebpf.Map {
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
	return tables.NewKernel(&bpf.Dataplane{
		V4: &bpf.FamilyMaps{Family: 4,
			Frontends: create("frontends_v4", ebpf.Hash, 8, 24, 4096), Backends: create("backends_v4", ebpf.Array, 4, 8, capacity)},
		V6: &bpf.FamilyMaps{Family: 6,
			Frontends: create("frontends_v6", ebpf.Hash, 20, 24, 4096), Backends: create("backends_v6", ebpf.Array, 4, 20, capacity)},
		IDs: create("ids", ebpf.Hash, 16, 4, 4096),
	})
}

// watched makes every call write one entry at a time and looks after each. It
// fails some writes if told to.
type watched struct {
	everything
	after  func()
	fails  func() bool
	writes int
}

func (w *watched) step(f func() error) error {
	if w.fails != nil && w.fails() {
		return fmt.Errorf("injected: %w", unix.E2BIG)
	}
	w.writes++
	if err := f(); err != nil {
		return err
	}
	if w.after != nil {
		w.after()
	}
	return nil
}

func (w *watched) PutFrontends(f tables.Family, entries []tables.FrontendEntry) error {
	for _, e := range entries {
		if err := w.step(func() error { return w.everything.PutFrontends(f, []tables.FrontendEntry{e}) }); err != nil {
			return err
		}
	}
	return nil
}

func (w *watched) DeleteFrontends(f tables.Family, keys []tables.FrontendKey) error {
	for _, k := range keys {
		if err := w.step(func() error { return w.everything.DeleteFrontends(f, []tables.FrontendKey{k}) }); err != nil {
			return err
		}
	}
	return nil
}

func (w *watched) PutBackends(f tables.Family, writes []tables.BackendWrite) error {
	for _, run := range writes {
		for i, b := range run.Backends {
			one := []tables.BackendWrite{{First: run.First + uint32(i), Backends: []tables.Backend{b}}}
			if err := w.step(func() error { return w.everything.PutBackends(f, one) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *watched) PutIDs(entries []tables.IDEntry) error {
	for _, e := range entries {
		if err := w.step(func() error { return w.everything.PutIDs([]tables.IDEntry{e}) }); err != nil {
			return err
		}
	}
	return nil
}

// resolve describes what a client that reads this frontend gets.
func resolve(t *testing.T, e everything, k tables.FrontendKey, v tables.Frontend) string {
	t.Helper()
	backends, err := e.ReadBackends(k.Family, v.First, v.Count)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(backends); i++ {
		if compareEnds(backends[i-1], backends[i]) >= 0 {
			t.Fatalf("%s: a program that searches its backends finds them in disorder: %v", k, backends)
		}
	}
	return describe(v.ServiceID, layout.FrontendFlags(v.Flags), v.Affinity, k.Family, backends)
}

func describe(id uint32, flags layout.FrontendFlags, affinity uint32, f tables.Family, backends []tables.Backend) string {
	var list []string
	for _, b := range backends {
		list = append(list, fmt.Sprintf("%s/%d", b.AddrPort(f), b.Flags))
	}
	slices.Sort(list)
	return fmt.Sprintf("%d %s %ds %s", id, flags, affinity, strings.Join(list, " "))
}

// random makes services that collide in addresses, share backends and change in
// every way.
type random struct {
	*rand.Rand
	wanted map[string][]Port
}

var serviceNames = func() []string {
	var names []string
	for i := range 12 {
		names = append(names, fmt.Sprintf("ns%d/s%d", i%3, i))
	}
	return names
}()

func address(f tables.Family, last int) tables.Address {
	var a tables.Address
	if f == tables.V4 {
		a[0], a[3] = 10, byte(last)
	} else {
		a[0], a[15] = 0xfd, byte(last)
	}
	return a
}

func (r *random) ports(service int) []Port {
	var ports []Port
	for n := range 1 + r.IntN(2) {
		p := Port{Name: fmt.Sprintf("p%d", n), Proto: []uint8{6, 17}[r.IntN(2)], Number: uint16(80 + n), Affinity: uint32(r.IntN(3))}
		for _, f := range tables.Families {
			if r.IntN(6) > 0 {
				p.claim(address(f, service), f, p.Number, layout.FrontendClusterIP)
			}
			if r.IntN(3) == 0 { // few addresses for many services: they clash
				p.claim(address(f, 200+r.IntN(3)), f, p.Number, layout.FrontendExternalIP)
			}
			if r.IntN(4) == 0 {
				p.claim(address(f, 210), f, uint16(30000+2*service+n), layout.FrontendNodePort)
			}
			var ready, draining []tables.Backend
			for b := range 1 + r.IntN(20) {
				backend := tables.Backend{Addr: address(f, 100+b), Port: uint16(8080 + r.IntN(2)), Flags: uint16(r.IntN(2))}
				switch r.IntN(4) {
				case 0:
				case 1:
					draining = append(draining, backend)
				default:
					ready = append(ready, backend)
				}
			}
			p.Backends[f] = sorted(ready)
			p.Draining[f] = without(sorted(draining), p.Backends[f])
		}
		ports = append(ports, p)
	}
	return ports
}

// tweak changes a service a little: the ways that are done in place.
func (r *random) tweak(ports []Port) []Port {
	ports = slices.Clone(ports)
	p := &ports[r.IntN(len(ports))]
	if r.IntN(4) == 0 {
		p.Affinity = uint32(r.IntN(3))
	}
	f := tables.Families[r.IntN(2)]
	list := slices.Clone(p.Backends[f])
	switch n := len(list); {
	case r.IntN(2) == 0 && n > 0:
		list = list[:n-1-r.IntN(n)]
	default:
		for i := range 1 + r.IntN(3) {
			list = append(list, tables.Backend{Addr: address(f, 130+len(list)+i), Port: 8080})
		}
	}
	p.Backends[f] = sorted(list)
	return ports
}

// batch changes some services and returns their names.
func (r *random) batch() []string {
	var names []string
	for range 1 + r.IntN(4) {
		i := r.IntN(len(serviceNames))
		name := serviceNames[i]
		have := r.wanted[name]
		switch {
		case r.IntN(5) == 0:
			delete(r.wanted, name)
		case have != nil && r.IntN(2) == 0:
			r.wanted[name] = r.tweak(have)
		default:
			r.wanted[name] = r.ports(i)
		}
		names = append(names, name)
	}
	return names
}

func (r *random) desire(name string) ([]Port, []Problem) { return r.wanted[name], nil }

// clock is a clock that tests move.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }
