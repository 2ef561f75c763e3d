// SPDX-License-Identifier: Apache-2.0

// Package ids gives out the dense numbers by which the kernel knows things that
// the stream calls by natural key. Numbers live in a pinned map and are written
// there before their first use, so that an agent that dies in between never
// gives one number to two things.
package ids

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/bpf/layout"
)

// ErrFull says that the map of ids has no room.
var ErrFull = errors.New("no room for another number")

// Key returns the key of a thing.
func Key(kind, naturalKey string) tables.IDKey {
	return layout.NewIDKey(kind, naturalKey).Digest
}

// Allocator gives out numbers. It is not safe for concurrent use.
type Allocator struct {
	table tables.IDs
	ids   map[tables.IDKey]uint32
	taken map[uint32]struct{}
	// resting numbers have lost their owner but may still be named by
	// conntrack records, here or in an earlier life of the agent.
	resting map[tables.IDKey]uint32
	// reserved numbers are of keys whose write failed: the map may hold it all the
	// same, so it is the key's and nobody else's.
	reserved map[tables.IDKey]uint32
	last     uint32
}

// New adopts the numbers that the map holds. They rest until somebody asks for
// them again.
func New(table tables.IDs) (*Allocator, error) {
	a := &Allocator{
		table:    table,
		ids:      map[tables.IDKey]uint32{},
		taken:    map[uint32]struct{}{},
		resting:  map[tables.IDKey]uint32{},
		reserved: map[tables.IDKey]uint32{},
	}
	err := table.ReadIDs(func(e tables.IDEntry) {
		a.resting[e.Key] = e.ID
		a.taken[e.ID] = struct{}{}
		a.last = max(a.last, e.ID)
	})
	if err != nil {
		return nil, fmt.Errorf("read ids: %w", err)
	}
	return a, nil
}

// Get returns the number of a key that Ensure succeeded for.
func (a *Allocator) Get(key tables.IDKey) (uint32, bool) {
	id, ok := a.ids[key]
	return id, ok
}

// Ensure gives every key a number, and writes new ones to the map before it
// returns. Keys for which that failed have none and are in the result.
func (a *Allocator) Ensure(keys []tables.IDKey) map[tables.IDKey]error {
	var fresh []tables.IDEntry
	failed := map[tables.IDKey]error{}
	pending := map[tables.IDKey]struct{}{}
	for _, key := range keys {
		if _, ok := a.ids[key]; ok {
			continue
		}
		if id, ok := a.resting[key]; ok {
			delete(a.resting, key)
			a.ids[key] = id
			continue
		}
		if _, ok := pending[key]; ok {
			continue
		}
		id, ok := a.reserved[key]
		if !ok {
			id, ok = a.next()
		}
		if !ok {
			failed[key] = ErrFull
			continue
		}
		pending[key] = struct{}{}
		a.taken[id] = struct{}{}
		fresh = append(fresh, tables.IDEntry{Key: key, ID: id})
	}
	if len(fresh) == 0 {
		return failed
	}
	err := a.table.PutIDs(fresh)
	for _, e := range fresh {
		if err != nil && len(fresh) > 1 {
			// The call as a whole failed; find out whose write it is.
			if single := a.table.PutIDs([]tables.IDEntry{e}); single != nil {
				a.fail(failed, e, single)
				continue
			}
		} else if err != nil {
			a.fail(failed, e, err)
			continue
		}
		a.ids[e.Key] = e.ID
		delete(a.reserved, e.Key)
	}
	return failed
}

func (a *Allocator) fail(failed map[tables.IDKey]error, e tables.IDEntry, err error) {
	a.reserved[e.Key] = e.ID
	if errors.Is(err, unix.E2BIG) {
		err = fmt.Errorf("%w: %w", ErrFull, err)
	}
	failed[e.Key] = fmt.Errorf("write ids: %w", err)
}

// next finds a number that is not taken. Numbers go up and start over at the
// end, so that a freed one is met again as late as possible.
func (a *Allocator) next() (uint32, bool) {
	if uint64(len(a.taken)) >= math.MaxUint32 {
		return 0, false
	}
	for {
		a.last++
		if a.last == 0 {
			continue
		}
		if _, ok := a.taken[a.last]; !ok {
			return a.last, true
		}
	}
}

// Release lets a key's number rest.
func (a *Allocator) Release(key tables.IDKey) {
	if id, ok := a.ids[key]; ok {
		delete(a.ids, key)
		a.resting[key] = id
	}
}

// Resting returns the numbers that rest, by key.
func (a *Allocator) Resting() map[tables.IDKey]uint32 {
	resting := make(map[tables.IDKey]uint32, len(a.resting))
	for key, id := range a.resting {
		resting[key] = id
	}
	return resting
}

// Forget ends the rest of numbers that nothing in the kernel names any more.
// Keys that came back to life meanwhile keep theirs.
func (a *Allocator) Forget(keys []tables.IDKey) error {
	var gone []tables.IDKey
	for _, key := range keys {
		if _, ok := a.resting[key]; ok {
			gone = append(gone, key)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := a.table.DeleteIDs(gone); err != nil {
		return fmt.Errorf("delete from ids: %w", err)
	}
	for _, key := range gone {
		delete(a.taken, a.resting[key])
		delete(a.resting, key)
	}
	return nil
}

// Len returns how many numbers are given out, and how many rest.
func (a *Allocator) Len() (given, resting int) { return len(a.ids), len(a.resting) }
