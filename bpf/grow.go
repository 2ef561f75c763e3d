// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
)

// Errors of [Generations.Grow].
var (
	// ErrMoving says that entries still move from the last growth.
	ErrMoving = errors.New("entries still move from its last growth")
	// ErrNotLarger says that the map has that size already, or more.
	ErrNotLarger = errors.New("it has room for as many already")
)

// Grow exchanges the map for a larger one, empty, and leaves the present one as
// the draining one, from which a [Mover] then takes the entries. Traffic goes on
// throughout: see growth for the steps.
func (g *Generations) Grow(entries uint32) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.draining != nil:
		return fmt.Errorf("map %s: %w", g.name, ErrMoving)
	case entries <= g.current.MaxEntries():
		return fmt.Errorf("map %s: %d entries: %w (%d)", g.name, entries, ErrNotLarger, g.current.MaxEntries())
	}
	if err := checkRoom(larger(g.name, g.current, entries)); err != nil {
		return err
	}
	for _, s := range g.growth(entries) {
		if err := s.do(); err != nil {
			return fmt.Errorf("grow map %s to %d entries: %s: %w", g.name, entries, s.name, err)
		}
	}
	return nil
}

// step is one change of pins or slots.
type step struct {
	name string
	do   func() error
}

// growth is what Grow does, a system call a step; whoever dies between two of
// them leaves what mendPins and writeSlots mend. A step that fails leaves the
// map as it was, or, once the pins say otherwise, as it is to be.
//
// No program misses a live record: the map is in the draining slot before
// another is in the current one, and whoever read a slot before its change has
// ended when the change's call returns. So no program that saw the draining slot
// empty runs while there are two maps to insert into, and none inserts into the
// draining map by the time that entries begin to move.
func (g *Generations) growth(entries uint32) []step {
	var next *ebpf.Map
	old := g.current
	// The pins of before, and no trace of the new map.
	takeBack := func(err error) error {
		return errors.Join(err, g.emptySlot(slotDraining), os.Remove(g.d.mapPin(g.name+pinNext)), next.Close())
	}
	return []step{
		{"create the new map", func() (err error) {
			spec := g.spec.Copy()
			spec.MaxEntries, spec.Contents = entries, nil
			next, err = ebpf.NewMap(spec)
			return refused(err)
		}},
		{"pin the new map", func() error {
			err := next.Pin(g.d.mapPin(g.name + pinNext))
			if err != nil {
				next.Close()
			}
			return err
		}},
		{"let programs look into the present map as the draining one", func() error {
			if err := g.writeSlot(slotDraining, old); err != nil {
				return takeBack(err)
			}
			return nil
		}},
		{"pin the present map as the draining one", func() error {
			if err := g.movePin(pinCurrent, pinDraining); err != nil {
				return takeBack(err)
			}
			return nil
		}},
		{"pin the new map as the current one", func() error {
			if err := g.movePin(pinNext, pinCurrent); err != nil {
				return takeBack(errors.Join(err, g.movePin(pinDraining, pinCurrent)))
			}
			g.current, g.draining = next, old
			return nil
		}},
		{"let programs use the new map", func() error { return g.writeSlot(slotCurrent, next) }},
	}
}

// drop gives up the draining map, which must be empty.
func (g *Generations) drop() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.draining == nil {
		return nil
	}
	if err := g.emptySlot(slotDraining); err != nil {
		return fmt.Errorf("map %s: %w", g.name, err)
	}
	if err := os.Remove(g.d.mapPin(g.name + pinDraining)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("map %s: remove pin: %w", g.name, err)
	}
	// Not closed: somebody may be reading it. The last one who does closes it.
	g.draining = nil
	return nil
}

// settleSlots makes the slots follow the pins when the last step of Grow failed.
func (g *Generations) settleSlots() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.writeSlots(); err != nil {
		return fmt.Errorf("map %s: %w", g.name, err)
	}
	return nil
}
