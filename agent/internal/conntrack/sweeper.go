// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

const (
	// tick and minBudget bound the sweeper's share of a core: a full pass over
	// half a million entries in one go would take 100 ms and more.
	tick      = 100 * time.Millisecond
	minBudget = 4096
	// pause is the time between the starts of two passes.
	pause = 5 * time.Second
	// passTime is how long a pass over large maps may take: the entries of a tick
	// grow with the maps, for what is over but not swept takes room. Passes over
	// four million entries then take not quite half a core.
	passTime = 10 * time.Second
)

// budgetFor returns how many entries a tick is to sweep so that a pass over n
// takes no longer than passTime.
func budgetFor(n int) int { return max(minBudget, n/int(passTime/tick)+1) }

const (
	// perTurn is how many entries there are before aliases are looked at in turns
	// only, and maxTurns how many passes until all were. Whether an alias's record
	// is there costs more than all else about an entry. Most aliases go with
	// their record; only those of which programs removed the record wait.
	perTurn  = 1 << 18
	maxTurns = 8
)

func turnsFor(n int) int { return min(1+n/perTurn, maxTurns) }

// turnOf spreads aliases over turns.
func turnOf[A layout.IP](k *layout.CtKey[A], turns int) int {
	return (int(k.LoPort[0]) + int(k.LoPort[1]) + int(k.HiPort[0]) + int(k.HiPort[1])) % turns
}

// Observer learns what a pass over the tables found.
type Observer struct {
	// Begin is called before a pass with nothing; it returns the numbers of
	// services that somebody waits to see unused.
	Begin func() map[uint32]struct{}
	// End is called after a pass that met no error.
	End func(PassStats)
	// Failed is called for each error; the pass starts over.
	Failed func(error)
}

// PassStats is what a pass found.
type PassStats struct {
	// Entries is how many entries each map held, by name.
	Entries map[string]int
	// Removed is how many were removed.
	Removed int
	// Unused are those numbers from Begin that no record named.
	Unused map[uint32]struct{}
	// Duration is how long the pass took.
	Duration time.Duration
	// Seen is how many entries were looked at.
	Seen int
	// Steady tells that no entry moved from one map to a larger one meanwhile:
	// else some may have been counted twice, or not at all.
	Steady bool

	growths uint64 // of the table when the pass began
}

// stage is the sweeping of one map.
type stage struct {
	name string
	step func(cursor *ebpf.MapBatchCursor, budget int, named func(uint32)) (scanned, error)
}

func stagesOf[A layout.IP](t *Table, maps Maps, family string, turn, turns int) []stage {
	names := map[*ebpf.Map]string{
		maps.Established: "established_" + family, maps.Embryonic: "embryonic_" + family,
	}
	if maps.EstablishedDraining != nil {
		names[maps.EstablishedDraining] = "established_" + family + "-draining"
	}
	if maps.EmbryonicDraining != nil {
		names[maps.EmbryonicDraining] = "embryonic_" + family + "-draining"
	}
	var stages []stage
	for _, m := range maps.all() {
		judge := stale[A](&maps, bpf.CoarseNow)
		stages = append(stages, stage{names[m], func(cursor *ebpf.MapBatchCursor, budget int, named func(uint32)) (scanned, error) {
			return scan(t, m, cursor, budget, func(k *layout.CtKey[A], e *layout.CtEntry[A]) verdict {
				if e.Kind != layout.CtRecord && turnOf(k, turns) != turn {
					return keep
				}
				v := judge(k, e)
				if v == keep && e.Kind == layout.CtRecord {
					named(e.ServiceID)
				}
				return v
			})
		}})
	}
	return stages
}

// Sweeper removes expired entries, a bounded number at a time.
type Sweeper struct {
	table    *Table
	observer Observer

	passes int

	mu   sync.Mutex
	last PassStats
}

// NewSweeper returns a sweeper of the table.
func NewSweeper(t *Table, o Observer) *Sweeper { return &Sweeper{table: t, observer: o} }

// Last returns what the last whole pass found.
func (s *Sweeper) Last() PassStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// Run sweeps until ctx ends.
func (s *Sweeper) Run(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		started := time.Now()
		wait := func() bool {
			select {
			case <-ctx.Done():
				return false
			case <-ticker.C:
				return true
			}
		}
		if err := s.pass(wait); err != nil {
			s.observer.Failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(tick, pause-time.Since(started))):
		}
	}
}

// Pass sweeps everything at once.
func (s *Sweeper) Pass() error { return s.pass(func() bool { return true }) }

// pass sweeps everything once; wait is called whenever the budget is used up
// and ends the pass if it returns false.
func (s *Sweeper) pass(wait func() bool) error {
	started := time.Now()
	began := s.table.growths.Load()
	stats := PassStats{Entries: map[string]int{}, Unused: s.observer.Begin(), growths: began}
	named := func(id uint32) { delete(stats.Unused, id) }
	budget := budgetFor(s.Last().Seen)
	left := budget
	v4, v6 := s.table.maps(4), s.table.maps(6)
	draining := v4.draining() || v6.draining()
	turns := turnsFor(s.Last().Seen)
	turn := s.passes % turns
	s.passes++
	stages := append(stagesOf[layout.V4](s.table, v4, "v4", turn, turns), stagesOf[layout.V6](s.table, v6, "v6", turn, turns)...)
	for _, st := range stages {
		var cursor ebpf.MapBatchCursor
		for end := false; !end; {
			if left <= 0 {
				if !wait() {
					return nil
				}
				// Many more than in the last pass: not at its pace.
				budget = max(budget, budgetFor(stats.Seen))
				left = budget
			}
			done, err := st.step(&cursor, left, named)
			if err != nil {
				return fmt.Errorf("sweep %s: %w", st.name, err)
			}
			left -= max(done.seen, 1)
			stats.Seen += done.seen
			// Some were removed with others before they were seen.
			stats.Entries[st.name] = max(stats.Entries[st.name]+done.seen-done.removed, 0)
			stats.Removed += done.removed
			end = done.end
		}
	}
	exchanged := s.table.growths.Load() != began
	if exchanged {
		// Entries may have moved past this pass: nothing is unused for sure.
		stats.Unused = nil
	}
	stats.Steady = !exchanged && !draining
	stats.Duration = time.Since(started)
	s.mu.Lock()
	s.last = stats
	s.mu.Unlock()
	s.observer.End(stats)
	return nil
}
