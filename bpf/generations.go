// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf/layout"
)

// Generations is a conntrack map that can be exchanged for a larger one while
// programs use it: they look in the current map, then in the draining one, and
// insert into the current.
//
// The pins of the inner maps are the truth, and the slots follow them: see
// [Generations.Grow] for the order in which both change.
type Generations struct {
	Outer *ebpf.Map // array of maps, by slot

	name   string // of the outer map
	family int
	table  layout.CtMoveTable
	spec   *ebpf.MapSpec // of the inner maps
	d      *Dataplane

	mu       sync.RWMutex
	current  *ebpf.Map
	draining *ebpf.Map // nil but while entries move to the current one
}

// Slots of Generations.Outer.
const (
	slotCurrent  uint32 = 0
	slotDraining uint32 = 1
)

// What the inner maps' pins have behind the outer map's name.
const (
	pinCurrent  = "-current"
	pinDraining = "-draining"
	// pinNext is the map that is about to become the current one.
	pinNext = "-next"
)

// Generations lists the conntrack maps of both families.
func (d *Dataplane) Generations() []*Generations { return d.generations }

// Name is the outer map's, for instance "established_v4".
func (g *Generations) Name() string { return g.name }

// Family is 4 or 6.
func (g *Generations) Family() int { return g.family }

// Maps returns the current map and the draining one, which is nil unless
// entries are moving. A map that has been dropped stays readable for who holds
// it; it is closed with the last reference.
func (g *Generations) Maps() (current, draining *ebpf.Map) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.current, g.draining
}

// Current returns the map that new entries go to.
func (g *Generations) Current() *ebpf.Map {
	current, _ := g.Maps()
	return current
}

// Draining returns the map that entries leave, or nil.
func (g *Generations) Draining() *ebpf.Map {
	_, draining := g.Maps()
	return draining
}

// close closes the inner maps; the outer one is among the dataplane's.
func (g *Generations) close() {
	current, draining := g.Maps()
	for _, m := range []*ebpf.Map{current, draining} {
		if m != nil {
			m.Close()
		}
	}
}

// openGenerations opens the inner maps of an array of maps, and brings to an
// end, or takes back, an exchange that somebody else did not finish.
func (d *Dataplane) openGenerations(base string, family int, spec *ebpf.CollectionSpec) (*Generations, error) {
	name := fmt.Sprintf("%s_v%d", base, family)
	s := spec.Maps[name]
	if d.maps[name] == nil || s == nil || s.InnerMap == nil {
		return nil, fmt.Errorf("objects have no array of maps %s", name)
	}
	g := &Generations{Outer: d.maps[name], name: name, family: family, spec: s.InnerMap.Copy(), d: d}
	if base == "embryonic" {
		g.table = layout.CtMoveEmbryonic
	}
	if err := g.mendPins(); err != nil {
		return nil, fmt.Errorf("map %s: %w", name, err)
	}
	var err error
	if g.current, err = d.openMap(name+pinCurrent, s.InnerMap); err != nil {
		return nil, err
	}
	draining := name + pinDraining
	if _, err := os.Lstat(d.mapPin(draining)); err == nil {
		if g.draining, err = d.openMap(draining, s.InnerMap); err != nil {
			g.close()
			return nil, err
		}
	}
	if err := g.writeSlots(); err != nil {
		g.close()
		return nil, fmt.Errorf("map %s: %w", name, err)
	}
	d.generations = append(d.generations, g)
	return g, nil
}

// mendPins makes pins whole that an exchange left half-done. A next map beside
// a current one is not used by anybody yet; without, it is to be the current
// one, and what was current is draining already.
func (g *Generations) mendPins() error {
	there := func(suffix string) bool { return exists(g.d.mapPin(g.name + suffix)) }
	switch {
	case there(pinCurrent) && there(pinNext):
		if err := os.Remove(g.d.mapPin(g.name + pinNext)); err != nil {
			return fmt.Errorf("remove a map that was not put to use: %w", err)
		}
	case there(pinCurrent):
	case there(pinNext) && there(pinDraining):
		return g.movePin(pinNext, pinCurrent)
	case there(pinDraining): // somebody else removed a pin
		return g.movePin(pinDraining, pinCurrent)
	}
	return nil
}

func (g *Generations) movePin(from, to string) error {
	if err := os.Rename(g.d.mapPin(g.name+from), g.d.mapPin(g.name+to)); err != nil {
		return fmt.Errorf("rename pin: %w", err)
	}
	return nil
}

// writeSlots makes the slots name the inner maps: the draining one first, so
// that no program misses what is in it when it is not the current one any more.
func (g *Generations) writeSlots() error {
	if g.draining != nil {
		if err := g.writeSlot(slotDraining, g.draining); err != nil {
			return err
		}
	}
	if err := g.writeSlot(slotCurrent, g.current); err != nil {
		return err
	}
	if g.draining == nil {
		return g.emptySlot(slotDraining)
	}
	return nil
}

// writeSlot puts a map into a slot. When it returns, every program that found
// another map there has ended. A slot that names the map already is not
// written, since every write waits for that.
func (g *Generations) writeSlot(slot uint32, m *ebpf.Map) error {
	have, err := g.readSlot(slot)
	if err != nil {
		return err
	}
	id, err := kernelID(m)
	if err != nil {
		return fmt.Errorf("inner map: %w", err)
	}
	if uint32(id) == have {
		return nil
	}
	if err := g.Outer.Put(slot, m); err != nil {
		return fmt.Errorf("write slot %d: %w", slot, err)
	}
	return nil
}

// emptySlot empties a slot, and waits like writeSlot.
func (g *Generations) emptySlot(slot uint32) error {
	have, err := g.readSlot(slot)
	if err != nil || have == 0 {
		return err
	}
	if err := g.Outer.Delete(slot); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("empty slot %d: %w", slot, err)
	}
	return nil
}

// readSlot returns the id of the map in a slot, 0 if it is empty.
func (g *Generations) readSlot(slot uint32) (id uint32, err error) {
	err = g.Outer.Lookup(slot, &id)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read slot %d: %w", slot, err)
	}
	return id, nil
}
