// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
)

// FamilyMaps are the maps that exist once per address family.
type FamilyMaps struct {
	Family int // 4 or 6

	Frontends *ebpf.Map // hash: layout.FrontendKey -> layout.Frontend
	Backends  *ebpf.Map // array of layout.Backend; write by WriteBackends alone
	Routes    *ebpf.Map // LPM: layout.RouteKey -> layout.Route
	Connected *ebpf.Map // array of layout.Connected
	Spilled   *ebpf.Map // hash: socket cookie -> layout.SockPeer
	Fragments *ebpf.Map // LRU: layout.FragmentKey -> layout.Fragment
	Affinity  *ebpf.Map // LRU: layout.AffinityKey -> layout.Affinity

	Embryonic   *Generations // LRU: layout.CtKey -> layout.CtEntry
	Established *Generations // hash: the same
}

// Family returns the maps of family 4 or 6.
func (d *Dataplane) Family(family int) *FamilyMaps {
	if family == 6 {
		return d.V6
	}
	return d.V4
}

// openMaps creates or adopts every map that spec declares.
func (d *Dataplane) openMaps(spec *ebpf.CollectionSpec) error {
	o := d.opts
	for name, size := range map[string]uint32{
		"frontends_v4": o.MaxFrontends, "frontends_v6": o.MaxFrontends,
		"backends_v4": o.MaxBackends, "backends_v6": o.MaxBackends,
		"routes_v4": o.MaxRoutes, "routes_v6": o.MaxRoutes,
		"spilled_v4": o.MaxSpilled, "spilled_v6": o.MaxSpilled,
		"affinity_v4": o.MaxAffinity, "affinity_v6": o.MaxAffinity,
		"ids": o.MaxIDs,
	} {
		if s := spec.Maps[name]; s != nil && size != 0 {
			s.MaxEntries = size
		}
	}
	for name, size := range map[string]uint32{
		"embryonic_v4": o.MaxEmbryonic, "embryonic_v6": o.MaxEmbryonic,
		"established_v4": o.MaxEstablished, "established_v6": o.MaxEstablished,
	} {
		if s := spec.Maps[name]; s != nil && s.InnerMap != nil && size != 0 {
			s.InnerMap.MaxEntries = size
		}
	}
	for name, s := range spec.Maps {
		if isObjectData(name) {
			continue
		}
		m, err := d.openMap(name, s)
		if err != nil {
			return err
		}
		d.maps[name] = m
	}
	d.Config, d.Counters = d.maps["config"], d.maps["counters"]
	var err error
	if d.V4, err = d.openFamily(4, spec); err != nil {
		return err
	}
	if d.V6, err = d.openFamily(6, spec); err != nil {
		return err
	}
	d.assign()
	return d.barrier.open()
}

// assign makes the fields name the tables in use.
func (d *Dataplane) assign() {
	d.IDs = d.maps["ids"]
	for _, f := range []*FamilyMaps{d.V4, d.V6} {
		f.Frontends = d.maps[fmt.Sprintf("frontends_v%d", f.Family)]
		f.Backends = d.maps[fmt.Sprintf("backends_v%d", f.Family)]
		f.Routes = d.maps[fmt.Sprintf("routes_v%d", f.Family)]
	}
}

// isObjectData tells maps that hold one object's constants and variables.
func isObjectData(name string) bool { return name[0] == '.' }

func (d *Dataplane) openFamily(family int, spec *ebpf.CollectionSpec) (*FamilyMaps, error) {
	name := func(base string) string { return fmt.Sprintf("%s_v%d", base, family) }
	embryonic, err := d.openGenerations("embryonic", family, spec)
	if err != nil {
		return nil, err
	}
	established, err := d.openGenerations("established", family, spec)
	if err != nil {
		embryonic.close()
		return nil, err
	}
	return &FamilyMaps{
		Family:      family,
		Connected:   d.maps[name("connected")],
		Spilled:     d.maps[name("spilled")],
		Fragments:   d.maps[name("fragments")],
		Affinity:    d.maps[name("affinity")],
		Embryonic:   embryonic,
		Established: established,
	}, nil
}

// openMap adopts the map pinned under name, or creates and pins it.
func (d *Dataplane) openMap(name string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	path := d.mapPin(name)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		if err := compatible(spec, m); err != nil {
			m.Close()
			return nil, fmt.Errorf("%w: map %s: %w", ErrLayout, name, err)
		}
		d.adopted = append(d.adopted, Adopted{Name: name, MaxEntries: m.MaxEntries(), Wanted: spec.MaxEntries,
			Grows: strings.HasSuffix(name, pinCurrent) || strings.HasSuffix(name, pinDraining)})
		return m, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open pinned map %s: %w", name, err)
	}
	s := spec.Copy()
	s.Contents = nil
	if d.past != nil && s.MaxEntries > 1 {
		before, err := d.pastSize(name)
		if err != nil {
			return nil, err
		}
		s.MaxEntries = max(s.MaxEntries, before)
	}
	if m, err = ebpf.NewMap(s); err != nil {
		return nil, fmt.Errorf("create map %s: %w", name, err)
	}
	if d.past != nil {
		if err := d.fromPast(name, m); err != nil {
			m.Close()
			return nil, fmt.Errorf("fill map %s: %w", name, err)
		}
	}
	if err := m.Pin(path); err != nil {
		m.Close()
		return nil, fmt.Errorf("pin map %s: %w", name, err)
	}
	return m, nil
}
