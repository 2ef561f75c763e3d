// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/bpf"
)

const (
	// growTick is how often it is looked whether something found no room, and
	// how often entries move.
	growTick = 100 * time.Millisecond
	// moveBatch is how many entries move at a time: during a step nothing else of
	// the agent changes entries.
	moveBatch = 16384
	// moveShare bounds the share of a core that moving takes.
	moveShare = 4
	// hastyPause is the time between two steps when flows wait for room.
	hastyPause = 2 * time.Millisecond
	// growRetry is when a growth that failed is tried again.
	growRetry = 30 * time.Second
)

// growFault is what a Grower notes failures of growing under.
const growFault = "replace it by a larger one"

// ErrUnknownMap says that a name is not of a conntrack map.
var ErrUnknownMap = errors.New("no conntrack map has that name")

// GrowthEvents are told what happens; all of them may be nil.
type GrowthEvents struct {
	Grown func(name string)
	Moved func(name string, entries int)
}

// Grower makes maps larger, and moves their entries, while traffic goes on.
type Grower struct {
	kernel *bpf.Dataplane
	table  *Table
	last   func() PassStats
	policy Policy
	events GrowthEvents
	log    *zap.Logger

	mu   sync.Mutex
	maps []*growing
}

// growing is what a Grower knows of a map.
type growing struct {
	*bpf.Generations
	mover    *bpf.Mover
	started  time.Time // of the move
	moved    int
	stay     int    // without room, in the last step
	failures uint64 // insertions that found no room, when last looked at
	full     bool   // found no room since it has its size
	hasty    bool   // it grew because of that: its entries move without a pause
	atLimit  bool   // as programs were told
	told     bool
	faults   map[string]string // by what failed last
	retry    time.Time
	since    uint64 // growths of the table when it got its size
}

// NewGrower returns a grower of the kernel's maps; last tells of the last whole
// pass over the table.
func NewGrower(kernel *bpf.Dataplane, table *Table, last func() PassStats, p Policy, e GrowthEvents, log *zap.Logger) *Grower {
	g := &Grower{kernel: kernel, table: table, last: last, policy: p, events: e, log: log}
	for _, m := range kernel.Generations() {
		g.maps = append(g.maps, &growing{Generations: m, mover: kernel.NewMover(m), started: time.Now(), faults: map[string]string{}})
	}
	return g
}

// Run moves what is to move and grows what is to grow until ctx ends.
func (g *Grower) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		if g.look() {
			timer.Reset(hastyPause)
		} else {
			timer.Reset(max(growTick, (moveShare-1)*time.Since(began)))
		}
	}
}

// look does what is to be done now, and tells whether more is urgent.
func (g *Grower) look() (urgent bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	pass := g.last()
	for _, m := range g.maps {
		if m.Draining() != nil {
			g.move(m)
		}
		g.pressure(m)
		if m.Draining() == nil {
			g.consider(m, &pass)
		}
		g.tellLimit(m)
		urgent = urgent || m.hasty && m.stay == 0 && m.Draining() != nil
	}
	return urgent
}

// move takes a step.
func (g *Grower) move(m *growing) {
	g.table.writing.Lock()
	moved, err := m.mover.Step(moveBatch)
	if moved.Drained {
		g.table.growths.Add(1)
	}
	g.table.writing.Unlock()
	g.note(m, "move entries to the larger map", err)
	if err != nil {
		return
	}
	m.moved += moved.Moved
	m.stay = moved.Stay
	if g.events.Moved != nil && moved.Moved > 0 {
		g.events.Moved(m.Name(), moved.Moved)
	}
	if moved.Drained {
		g.log.Info("all entries are in the larger map", zap.String("map", m.Name()), zap.Int("moved", m.moved),
			zap.Duration("took", time.Since(m.started)))
		m.moved, m.stay = 0, 0
	}
}

// note keeps why something does not work, and logs it the first time.
func (g *Grower) note(m *growing, what string, err error) {
	if err == nil {
		delete(m.faults, what)
		return
	}
	if m.faults[what] != err.Error() {
		g.log.Error(what, zap.String("map", m.Name()), zap.Error(err))
	}
	m.faults[what] = err.Error()
}

func (m *growing) established() bool { return m.Name() == fmt.Sprintf("established_v%d", m.Family()) }

// pressure looks whether a flow found no room.
func (g *Grower) pressure(m *growing) {
	if !m.established() {
		return // it makes room itself
	}
	p, err := g.kernel.Pressure(m.Family())
	g.note(m, "look for flows without room", err)
	if err != nil {
		return
	}
	if p.Failures != m.failures {
		m.full = true
	} else if p.Until < bpf.CoarseNow() {
		m.full = false
	}
	m.failures = p.Failures
}

// consider lets a map grow if it is to.
func (g *Grower) consider(m *growing, pass *PassStats) {
	if time.Now().Before(m.retry) {
		return
	}
	entries := -1
	if n, ok := pass.Entries[m.Name()]; ok && pass.Steady && pass.growths >= m.since {
		entries = n
	}
	have := m.Current().MaxEntries()
	want := g.policy.size(m.Name(), entries, have, m.full)
	if want <= have {
		return
	}
	err := g.grow(m, want)
	g.note(m, growFault, err)
	if err != nil {
		m.retry = time.Now().Add(growRetry)
	}
}

// grow exchanges a map for a larger one.
func (g *Grower) grow(m *growing, entries uint32) error {
	have := m.Current().MaxEntries()
	began := time.Now()
	g.table.writing.Lock()
	err := m.Grow(entries)
	g.table.growths.Add(1)
	g.table.writing.Unlock()
	if err != nil {
		return err
	}
	m.started, m.moved, m.stay, m.retry = time.Now(), 0, 0, time.Time{}
	m.hasty, m.full = m.full, false
	if p, err := g.kernel.Pressure(m.Family()); err == nil {
		m.failures = p.Failures // those were the smaller one's
	}
	g.note(m, growFault, nil)
	m.since = g.table.growths.Load()
	g.log.Info("a map is replaced by a larger one", zap.String("map", m.Name()), zap.Uint32("before", have),
		zap.Uint32("entries", entries), zap.Duration("took", time.Since(began)))
	if g.events.Grown != nil {
		g.events.Grown(m.Name())
	}
	return nil
}

// tellLimit tells programs whether a map may become larger.
func (g *Grower) tellLimit(m *growing) {
	if !m.established() {
		return
	}
	atLimit := !g.policy.mayGrow(m.Name(), m.Current().MaxEntries())
	if m.told && atLimit == m.atLimit {
		return
	}
	err := g.kernel.SetConntrackLimit(m.Family(), atLimit)
	g.note(m, "tell programs the map's limit", err)
	m.told, m.atLimit = err == nil, atLimit
}

// Grow makes a map larger because somebody asks for it, beyond its limit too.
func (g *Grower) Grow(name string, entries uint32) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.IndexFunc(g.maps, func(m *growing) bool { return m.Name() == name })
	if i < 0 {
		return fmt.Errorf("map %q: %w", name, ErrUnknownMap)
	}
	if err := g.grow(g.maps[i], entries); err != nil {
		return err
	}
	g.tellLimit(g.maps[i])
	return nil
}

// Problems names maps that are full, or could not grow.
func (g *Grower) Problems() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var problems []string
	pass := g.last()
	for _, m := range g.maps {
		size := m.Current().MaxEntries()
		for _, what := range slices.Sorted(maps.Keys(m.faults)) {
			problems = append(problems, fmt.Sprintf("map %s (%d entries): %s: %s", m.Name(), size, what, m.faults[what]))
		}
		atLimit := !g.policy.mayGrow(m.Name(), size)
		switch {
		case m.stay > 0 && !atLimit:
			problems = append(problems, fmt.Sprintf("map %s filled up (%d entries) before the entries of the smaller one had moved: %d wait",
				m.Name(), size, m.stay))
		case !atLimit:
		case m.established() && m.full:
			problems = append(problems, fmt.Sprintf(
				"map %s is full (%d entries) and may not grow: new flows to services are dropped while there is no room; raise --limit-%s or use millracectl maps grow",
				m.Name(), size, flagOf(m.Name())))
		case g.policy.Percent > 0 && uint64(pass.Entries[m.Name()])*100 >= uint64(size)*uint64(g.policy.Percent):
			problems = append(problems, fmt.Sprintf("map %s has %d of %d entries and may not grow: raise --limit-%s or use millracectl maps grow",
				m.Name(), pass.Entries[m.Name()], size, flagOf(m.Name())))
		}
	}
	return problems
}

// flagOf is a map's name in flags: without the family.
func flagOf(name string) string { return name[:len(name)-len("_v4")] }

// Failures returns how often each map had no room, by name.
func (g *Grower) Failures() map[string]uint64 {
	failures := map[string]uint64{}
	for _, m := range g.maps {
		if m.established() {
			if p, err := g.kernel.Pressure(m.Family()); err == nil {
				failures[m.Name()] = p.Failures
			}
		}
	}
	return failures
}
