// SPDX-License-Identifier: Apache-2.0

package tables

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// Kernel is the real maps. A call looks the maps up, since they are replaced
// when they grow.
type Kernel struct {
	*bpf.Dataplane
	writes writes
}

var (
	_ Frontends = (*Kernel)(nil)
	_ Backends  = (*Kernel)(nil)
	_ IDs       = (*Kernel)(nil)
	_ Routes    = (*Kernel)(nil)
)

// NewKernel returns the tables over a dataplane's maps.
func NewKernel(d *bpf.Dataplane) *Kernel {
	return &Kernel{Dataplane: d}
}

// of returns the maps of a family.
func (k *Kernel) of(f Family) *bpf.FamilyMaps {
	if f == V4 {
		return k.Tables().Family(4)
	}
	return k.Tables().Family(6)
}

// all adapts a callback that wants everything.
func all[K, V any](each func(K, V)) func(K, V) bool {
	return func(k K, v V) bool {
		each(k, v)
		return true
	}
}

// raw converts an address to the form of the maps.
func raw[A layout.IP](a Address) (r A) {
	switch p := any(&r).(type) {
	case *layout.V4:
		copy(p[:], a[:4])
	case *layout.V6:
		copy(p[:], a[:])
	}
	return r
}

// cooked converts an address from the form of the maps.
func cooked[A layout.IP](r A) (a Address) {
	switch v := any(r).(type) {
	case layout.V4:
		copy(a[:], v[:])
	case layout.V6:
		copy(a[:], v[:])
	}
	return a
}

func rawFrontendKey[A layout.IP](k FrontendKey) layout.FrontendKey[A] {
	return layout.FrontendKey[A]{Addr: raw[A](k.Addr), Port: layout.Port(k.Port), Proto: k.Proto}
}

func readFrontends[A layout.IP](m *ebpf.Map, f Family, each func(FrontendEntry)) error {
	return bpf.Each(m, all(func(k layout.FrontendKey[A], v layout.Frontend) {
		each(FrontendEntry{
			Key: FrontendKey{Addr: cooked(k.Addr), Port: k.Port.Uint16(), Proto: k.Proto, Family: f},
			Value: Frontend{ServiceID: v.ServiceID, First: v.FirstBackend, Count: v.BackendCount, Flags: uint32(v.Flags),
				Affinity: v.AffinityTimeout},
		})
	}))
}

func putFrontends[A layout.IP](m *ebpf.Map, entries []FrontendEntry) error {
	keys := make([]layout.FrontendKey[A], len(entries))
	values := make([]layout.Frontend, len(entries))
	for i, e := range entries {
		keys[i] = rawFrontendKey[A](e.Key)
		values[i] = layout.Frontend{
			ServiceID:       e.Value.ServiceID,
			FirstBackend:    e.Value.First,
			BackendCount:    e.Value.Count,
			Flags:           layout.FrontendFlags(e.Value.Flags),
			AffinityTimeout: e.Value.Affinity,
		}
	}
	return bpf.UpdateBatch(m, keys, values)
}

func deleteFrontends[A layout.IP](m *ebpf.Map, keys []FrontendKey) error {
	rawKeys := make([]layout.FrontendKey[A], len(keys))
	for i, k := range keys {
		rawKeys[i] = rawFrontendKey[A](k)
	}
	return bpf.DeleteBatch(m, rawKeys)
}

// ReadFrontends implements Frontends.
func (k *Kernel) ReadFrontends(f Family, each func(FrontendEntry)) error {
	if f == V4 {
		return readFrontends[layout.V4](k.of(f).Frontends, f, each)
	}
	return readFrontends[layout.V6](k.of(f).Frontends, f, each)
}

// FrontendCapacity implements Frontends.
func (k *Kernel) FrontendCapacity(f Family) uint32 { return k.of(f).Frontends.MaxEntries() }

// PutFrontends implements Frontends.
func (k *Kernel) PutFrontends(f Family, entries []FrontendEntry) error {
	name, n := "frontends_"+f.String(), len(entries)
	if f == V4 {
		return k.writes.done(name, Put, n, putFrontends[layout.V4](k.of(f).Frontends, entries))
	}
	return k.writes.done(name, Put, n, putFrontends[layout.V6](k.of(f).Frontends, entries))
}

// DeleteFrontends implements Frontends.
func (k *Kernel) DeleteFrontends(f Family, keys []FrontendKey) error {
	name, n := "frontends_"+f.String(), len(keys)
	if f == V4 {
		return k.writes.done(name, Delete, n, deleteFrontends[layout.V4](k.of(f).Frontends, keys))
	}
	return k.writes.done(name, Delete, n, deleteFrontends[layout.V6](k.of(f).Frontends, keys))
}

// BackendCapacity implements Backends.
func (k *Kernel) BackendCapacity(f Family) uint32 { return k.of(f).Backends.MaxEntries() }

func readBackends[A layout.IP](m *ebpf.Map, first, n uint32) ([]Backend, error) {
	backends := make([]Backend, n)
	for i := range backends {
		var b layout.Backend[A]
		if err := m.Lookup(first+uint32(i), &b); err != nil {
			return nil, fmt.Errorf("read backend %d: %w", first+uint32(i), err)
		}
		backends[i] = Backend{Addr: cooked(b.Addr), Port: b.Port.Uint16(), Flags: uint16(b.Flags)}
	}
	return backends, nil
}

// ReadBackends implements Backends.
func (k *Kernel) ReadBackends(f Family, first, n uint32) ([]Backend, error) {
	if f == V4 {
		return readBackends[layout.V4](k.of(f).Backends, first, n)
	}
	return readBackends[layout.V6](k.of(f).Backends, first, n)
}

func putBackends[A layout.IP](m *ebpf.Map, writes []BackendWrite) error {
	total := 0
	for _, w := range writes {
		total += len(w.Backends)
	}
	keys := make([]uint32, 0, total)
	values := make([]layout.Backend[A], 0, total)
	for _, w := range writes {
		for i, b := range w.Backends {
			keys = append(keys, w.First+uint32(i))
			values = append(values, layout.Backend[A]{
				Addr: raw[A](b.Addr), Port: layout.Port(b.Port), Flags: layout.BackendFlags(b.Flags),
			})
		}
	}
	return bpf.UpdateBatch(m, keys, values)
}

// PutBackends implements Backends.
func (k *Kernel) PutBackends(f Family, writes []BackendWrite) error {
	name, n := "backends_"+f.String(), 0
	for _, w := range writes {
		n += len(w.Backends)
	}
	if f == V4 {
		return k.writes.done(name, Put, n, putBackends[layout.V4](k.of(f).Backends, writes))
	}
	return k.writes.done(name, Put, n, putBackends[layout.V6](k.of(f).Backends, writes))
}

// WriteConfig writes the settings that programs read.
func (k *Kernel) WriteConfig(c layout.Config) error {
	return k.writes.done("config", Put, 1, k.Dataplane.WriteConfig(c))
}

// ReadIDs implements IDs.
func (k *Kernel) ReadIDs(each func(IDEntry)) error {
	return bpf.Each(k.Tables().IDs, all(func(key layout.IDKey, id uint32) { each(IDEntry{Key: key.Digest, ID: id}) }))
}

// PutIDs implements IDs.
func (k *Kernel) PutIDs(entries []IDEntry) error {
	keys := make([]layout.IDKey, len(entries))
	values := make([]uint32, len(entries))
	for i, e := range entries {
		keys[i], values[i] = layout.IDKey{Digest: e.Key}, e.ID
	}
	return k.writes.done("ids", Put, len(entries), bpf.UpdateBatch(k.Tables().IDs, keys, values))
}

// DeleteIDs implements IDs.
func (k *Kernel) DeleteIDs(keys []IDKey) error {
	rawKeys := make([]layout.IDKey, len(keys))
	for i, key := range keys {
		rawKeys[i] = layout.IDKey{Digest: key}
	}
	return k.writes.done("ids", Delete, len(keys), bpf.DeleteBatch(k.Tables().IDs, rawKeys))
}

func rawRouteKey[A layout.IP](k RouteKey) layout.RouteKey[A] {
	return layout.RouteKey[A]{PrefixLen: uint32(k.Bits), Addr: raw[A](k.Addr)}
}

func readRoutes[A layout.IP](m *ebpf.Map, f Family, each func(RouteEntry)) error {
	return bpf.Each(m, all(func(k layout.RouteKey[A], v layout.Route) {
		each(RouteEntry{
			Key:   RouteKey{Addr: cooked(k.Addr), Bits: uint8(k.PrefixLen), Family: f},
			Value: Route{Flags: uint32(v.Flags), Ifindex: v.Ifindex},
		})
	}))
}

func putRoutes[A layout.IP](m *ebpf.Map, entries []RouteEntry) error {
	keys := make([]layout.RouteKey[A], len(entries))
	values := make([]layout.Route, len(entries))
	for i, e := range entries {
		keys[i] = rawRouteKey[A](e.Key)
		values[i] = layout.Route{Flags: layout.RouteFlags(e.Value.Flags), Ifindex: e.Value.Ifindex}
	}
	return bpf.UpdateBatch(m, keys, values)
}

func deleteRoutes[A layout.IP](m *ebpf.Map, keys []RouteKey) error {
	rawKeys := make([]layout.RouteKey[A], len(keys))
	for i, key := range keys {
		rawKeys[i] = rawRouteKey[A](key)
	}
	return bpf.DeleteBatch(m, rawKeys)
}

// ReadRoutes implements Routes.
func (k *Kernel) ReadRoutes(f Family, each func(RouteEntry)) error {
	if f == V4 {
		return readRoutes[layout.V4](k.of(f).Routes, f, each)
	}
	return readRoutes[layout.V6](k.of(f).Routes, f, each)
}

// PutRoutes implements Routes.
func (k *Kernel) PutRoutes(f Family, entries []RouteEntry) error {
	name, n := "routes_"+f.String(), len(entries)
	if f == V4 {
		return k.writes.done(name, Put, n, putRoutes[layout.V4](k.of(f).Routes, entries))
	}
	return k.writes.done(name, Put, n, putRoutes[layout.V6](k.of(f).Routes, entries))
}

// DeleteRoutes implements Routes.
func (k *Kernel) DeleteRoutes(f Family, keys []RouteKey) error {
	name, n := "routes_"+f.String(), len(keys)
	if f == V4 {
		return k.writes.done(name, Delete, n, deleteRoutes[layout.V4](k.of(f).Routes, keys))
	}
	return k.writes.done(name, Delete, n, deleteRoutes[layout.V6](k.of(f).Routes, keys))
}
