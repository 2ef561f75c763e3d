// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"

	"github.com/cilium/ebpf"
)

// tables are the maps that the agent alone writes to and that can grow.
var tables = []string{
	"frontends_v4", "frontends_v6", "backends_v4", "backends_v6", "routes_v4", "routes_v6", "ids",
}

// Tables are the tables of an instant. One that is replaced later stays as it
// was, and can be read to the end.
type Tables struct {
	V4, V6 FamilyMaps
	IDs    *ebpf.Map
}

// Family returns the maps of family 4 or 6.
func (t *Tables) Family(family int) *FamilyMaps {
	if family == 6 {
		return &t.V6
	}
	return &t.V4
}

// Tables returns the tables in use. Who runs beside [Growth.Exchange] must ask
// each time, and not look at the dataplane's fields.
func (d *Dataplane) Tables() *Tables {
	d.use.RLock()
	defer d.use.RUnlock()
	return &Tables{V4: *d.V4, V6: *d.V6, IDs: d.IDs}
}

// TableSizes returns how many entries fit into each table, by name.
func (d *Dataplane) TableSizes() map[string]uint32 {
	d.use.RLock()
	defer d.use.RUnlock()
	sizes := make(map[string]uint32, len(tables))
	for _, name := range tables {
		sizes[name] = d.maps[name].MaxEntries()
	}
	return sizes
}

// Growth is a replacement of tables by larger ones that has been prepared.
type Growth struct{ s *stage }

// PrepareGrowth makes tables of the given sizes by name and loads programs for
// them, which takes as long as a start; traffic and changes go on meanwhile.
// One growth at a time: it ends by Exchange or Abort.
func (d *Dataplane) PrepareGrowth(sizes map[string]uint32) (*Growth, error) {
	var requests []request
	for _, name := range sortedKeys(sizes) {
		m, size := d.maps[name], sizes[name]
		if m == nil || !isTable(name) {
			return nil, fmt.Errorf("map %s: it cannot grow", name)
		}
		if size <= m.MaxEntries() {
			return nil, fmt.Errorf("map %s: it has room for %d entries already", name, m.MaxEntries())
		}
		requests = append(requests, larger(name, m, size))
	}
	if err := checkRoom(requests...); err != nil {
		return nil, err
	}
	s, err := d.newStage(sizes)
	// What was read to load the programs is large beside what the agent keeps.
	debug.FreeOSMemory()
	if err != nil {
		return nil, err
	}
	return &Growth{s: s}, nil
}

func isTable(name string) bool { return slices.Contains(tables, name) }

// Exchange copies the tables and gives every attachment the programs that use
// the new ones. Nobody may write to a table meanwhile. When it fails, everything
// is as it was, unless the error wraps [ErrPins].
func (g *Growth) Exchange() error {
	d := g.s.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := g.s.copyTables(); err != nil {
		g.s.abandon()
		return err
	}
	known := d.byID()
	maps.Copy(known, d.strays)
	if err := d.exchangeLinks(known, g.s.programSet); err != nil {
		maps.Copy(known, g.s.byID())
		if back := d.exchangeLinks(known, d.programSet); back != nil {
			// Some attachments read tables that are not written any more, until
			// the next growth or start. The pins stay: a start knows them by
			// these.
			d.strays = known
			return errors.Join(err, fmt.Errorf("and back: %w", back))
		}
		g.s.abandon()
		return err
	}
	d.strays = nil
	if err := g.s.commit(); err != nil {
		return fmt.Errorf("%w: %w", ErrPins, err)
	}
	return nil
}

// ErrPins says that new tables are in use but could not all be pinned, which
// [Dataplane.PinTables] tries again.
var ErrPins = errors.New("tables are in use that are not pinned")

// PinTables pins the tables and the programs in use where something else is
// pinned, or nothing. No growth may be prepared meanwhile.
func (d *Dataplane) PinTables() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.restorePins(); err != nil {
		return err
	}
	for _, name := range tables {
		if err := d.pinTable(name); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	if err := d.pinPrograms(d.programsDir(), d.programSet, d.maps); err != nil {
		return err
	}
	if len(d.strays) > 0 {
		return nil // the next start knows them by their pins
	}
	return removeStages(d.opts.PinPath)
}

// pinTable puts the pin of a table in place of another's in one step.
func (d *Dataplane) pinTable(name string) error {
	path := d.mapPin(name)
	have, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		defer have.Close()
		if same, err := sameMap(have, d.maps[name]); err != nil || same {
			return err
		}
	}
	return replacePin(path, func(path string) error { return pinAt(d.maps[name], path) })
}

// sameMap tells whether two descriptors are of one map.
func sameMap(a, b *ebpf.Map) (bool, error) {
	idA, err := kernelID(a)
	if err != nil {
		return false, err
	}
	idB, err := kernelID(b)
	return idA == idB, err
}

// Abort gives the growth up.
func (g *Growth) Abort() { g.s.abandon() }
