// SPDX-License-Identifier: Apache-2.0

// Package conntrack keeps the flow tables of the dataplane tidy and answers
// questions about them. Programs treat an expired record as absent, so nothing
// here is needed for correctness of a packet: what it does is to give room back,
// and to end flows that must not go on.
package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// Maps are the inner maps of one family in the order in which programs look at
// them; the draining ones are nil unless a map is being replaced.
type Maps struct {
	Established         *ebpf.Map
	Embryonic           *ebpf.Map
	EstablishedDraining *ebpf.Map
	EmbryonicDraining   *ebpf.Map
}

// all returns the maps in the order in which a pass has to look at them: flows
// move from embryonic to established, so in this order one that moves during
// the pass is met at least once.
func (m *Maps) all() []*ebpf.Map {
	var all []*ebpf.Map
	for _, each := range []*ebpf.Map{m.EmbryonicDraining, m.Embryonic, m.EstablishedDraining, m.Established} {
		if each != nil {
			all = append(all, each)
		}
	}
	return all
}

// draining tells whether entries of one of them are to move.
func (m *Maps) draining() bool { return m.EstablishedDraining != nil || m.EmbryonicDraining != nil }

// Table is the flow tables of both families. Its methods may be called from many
// goroutines.
type Table struct {
	maps func(family int) Maps

	// writing is held by whoever changes entries: a map's growth moves entries,
	// and what is changed by another then could be undone by the move.
	writing sync.Mutex
	// growths counts exchanges of maps: a pass that began before one may have
	// missed what has moved since.
	growths atomic.Uint64

	ending ending
}

// New returns the table over the maps that the function tells, which may be
// others at each call.
func New(maps func(family int) Maps) *Table { return &Table{maps: maps} }

// Writing is held by whoever changes entries, or exchanges maps of them.
func (t *Table) Writing() sync.Locker { return &t.writing }

// batchSize bounds the buffers: an entry has about 200 bytes.
const batchSize = 512

// Flow is one tracked flow.
type Flow struct {
	Family      int
	Proto       uint8
	Client      netip.AddrPort
	Frontend    netip.AddrPort
	Backend     netip.AddrPort
	Source      netip.AddrPort
	State       layout.CtState
	Flags       layout.CtFlags
	ServiceID   uint32
	Established bool
	Expires     time.Duration
}

// verdict is what to do with an entry.
type verdict int

const (
	keep verdict = iota
	remove
	// unconfirm lets the flow go through the host's stack again.
	unconfirm
)

// scanned is what a scan did.
type scanned struct {
	seen    int  // entries
	removed int  // entries, or records that were changed
	flows   int  // of them, those that the scan's judge named
	end     bool // of the map
}

// scan reads a map from the cursor on, at most budget entries or all if budget
// is 0, and acts on what judge says.
func scan[A layout.IP](t *Table, m *ebpf.Map, cursor *ebpf.MapBatchCursor, budget int,
	judge func(*layout.CtKey[A], *layout.CtEntry[A]) verdict,
) (scanned, error) {
	var s scanned
	keys := make([]layout.CtKey[A], batchSize)
	entries := make([]layout.CtEntry[A], batchSize)
	for budget <= 0 || s.seen < budget {
		n, err := m.BatchLookup(cursor, keys, entries, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return s, fmt.Errorf("read conntrack: %w", err)
		}
		for i := range n {
			switch judge(&keys[i], &entries[i]) {
			case keep:
			case remove:
				removed, err := removeIf(t, m, &keys[i], judge)
				s.removed += removed
				s.flows += min(removed, 1)
				if err != nil {
					return s, err
				}
			case unconfirm:
				if err := clearDevices(t, m, &keys[i], judge); err != nil {
					return s, err
				}
				s.removed++
				s.flows++
			}
		}
		s.seen += n
		if err != nil {
			s.end = true
			return s, nil
		}
	}
	return s, nil
}

// removeIf removes an entry, and with a record the aliases that stand beside it,
// unless a program has replaced it meanwhile. It returns how many it removed.
func removeIf[A layout.IP](t *Table, m *ebpf.Map, key *layout.CtKey[A],
	judge func(*layout.CtKey[A], *layout.CtEntry[A]) verdict,
) (int, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	var record layout.CtEntry[A]
	gone, err := removeLocked(m, key, &record, judge)
	if !gone || err != nil || record.Kind != layout.CtRecord {
		return btoi(gone), err
	}
	stack := layout.AddrPort(record.ClientAddr, record.StackPort)
	frontend, _, _ := layout.NewCtKey[A](record.Client(), record.Frontend(), record.Main.Proto)
	backend, _, _ := layout.NewCtKey[A](stack, record.Backend(), record.Main.Proto)
	n := 1
	for _, alias := range []layout.CtKey[A]{frontend, backend} {
		if alias == record.Main {
			continue
		}
		var e layout.CtEntry[A]
		gone, err := removeLocked(m, &alias, &e, func(_ *layout.CtKey[A], e *layout.CtEntry[A]) verdict {
			if e.Kind != layout.CtRecord && e.Nonce == record.Nonce {
				return remove
			}
			return keep
		})
		n += btoi(gone)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// removeLocked removes an entry, which it returns, unless it is another by now.
func removeLocked[A layout.IP](m *ebpf.Map, key *layout.CtKey[A], entry *layout.CtEntry[A],
	judge func(*layout.CtKey[A], *layout.CtEntry[A]) verdict,
) (bool, error) {
	err := m.Lookup(key, entry)
	if err == nil && judge(key, entry) != remove {
		return false, nil
	}
	if err == nil {
		err = m.LookupAndDelete(key, entry)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove from conntrack: %w", err)
	}
	if judge(key, entry) == remove {
		return true, nil
	}
	// Replaced between the two calls: put the new one back, unless it has been
	// made anew already.
	if err := m.Update(key, entry, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return false, fmt.Errorf("restore to conntrack: %w", err)
	}
	return false, nil
}

func clearDevices[A layout.IP](t *Table, m *ebpf.Map, key *layout.CtKey[A],
	judge func(*layout.CtKey[A], *layout.CtEntry[A]) verdict,
) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	var entry layout.CtEntry[A]
	if err := m.Lookup(key, &entry); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		return fmt.Errorf("read conntrack: %w", err)
	}
	if judge(key, &entry) != unconfirm {
		return nil
	}
	entry.OutIfindex, entry.OutKind = [2]uint32{}, [2]layout.DeviceKind{}
	if err := m.Update(key, &entry, ebpf.UpdateExist); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("write conntrack: %w", err)
	}
	return nil
}

// recordLives tells whether the record that an alias names is there.
func recordLives[A layout.IP](maps *Maps, alias *layout.CtEntry[A], now uint64) bool {
	// Embryonic first: a flow that moves between the looks is found by the later.
	for _, m := range maps.all() {
		var record layout.CtEntry[A]
		if err := m.Lookup(&alias.Main, &record); err != nil {
			continue
		}
		if record.Kind == layout.CtRecord && record.Nonce == alias.Nonce && record.Expires > now {
			return true
		}
	}
	return false
}

// stale judges by time: expired records, and aliases whose record is gone.
func stale[A layout.IP](maps *Maps, clock func() uint64) func(*layout.CtKey[A], *layout.CtEntry[A]) verdict {
	return func(_ *layout.CtKey[A], e *layout.CtEntry[A]) verdict {
		now := clock()
		if e.Kind == layout.CtRecord {
			if e.Expires <= now {
				return remove
			}
			return keep
		}
		if recordLives(maps, e, now) {
			return keep
		}
		return remove
	}
}

// each scans everything, record by record, and again if maps were exchanged
// meanwhile.
func each[A layout.IP](t *Table, family int, judge func(*layout.CtKey[A], *layout.CtEntry[A]) verdict) (int, error) {
	total := 0
	for {
		began := t.growths.Load()
		maps := t.maps(family)
		for _, m := range maps.all() {
			var cursor ebpf.MapBatchCursor
			s, err := scan(t, m, &cursor, 0, judge)
			total += s.flows
			if err != nil {
				return total, err
			}
		}
		if t.growths.Load() == began {
			return total, nil
		}
	}
}

// ForEach calls visit with every live flow until it returns an error.
func (t *Table) ForEach(visit func(Flow) error) error {
	if err := list[layout.V4](t, 4, visit); err != nil {
		return err
	}
	return list[layout.V6](t, 6, visit)
}

func list[A layout.IP](t *Table, family int, visit func(Flow) error) error {
	maps := t.maps(family)
	for _, m := range maps.all() {
		now := bpf.CoarseNow()
		established := m == maps.Established || m == maps.EstablishedDraining
		var failed error
		var cursor ebpf.MapBatchCursor
		_, err := scan(t, m, &cursor, 0, func(k *layout.CtKey[A], e *layout.CtEntry[A]) verdict {
			if failed == nil && e.Kind == layout.CtRecord && e.Expires > now {
				failed = visit(Flow{
					Family: family, Proto: k.Proto, Client: e.Client(), Frontend: e.Frontend(), Backend: e.Backend(),
					Source: e.Source(), State: e.State, Flags: e.Flags, ServiceID: e.ServiceID,
					Established: established, Expires: time.Duration(e.Expires - now),
				})
			}
			return keep
		})
		if failed != nil {
			return failed
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Answers tells whether a backend still answers for a frontend.
type Answers func(frontend, backend netip.AddrPort, proto uint8) bool

// RemoveStaleUDP ends the UDP flows of services whose backend answers no more.
// UDP has no end of its own: a client that sends on would be led to nobody for
// as long as it does.
func (t *Table) RemoveStaleUDP(answers Answers) (int, error) {
	n4, err4 := each(t, 4, staleUDP[layout.V4](answers))
	n6, err6 := each(t, 6, staleUDP[layout.V6](answers))
	return n4 + n6, errors.Join(err4, err6)
}

func staleUDP[A layout.IP](answers Answers) func(*layout.CtKey[A], *layout.CtEntry[A]) verdict {
	return func(k *layout.CtKey[A], e *layout.CtEntry[A]) verdict {
		if e.Kind != layout.CtRecord || k.Proto != layout.ProtoUDP || e.ServiceID == 0 {
			return keep
		}
		if answers(e.Frontend(), e.Backend(), k.Proto) {
			return keep
		}
		return remove
	}
}

// ForgetDevices ends the flows that leave by pods' devices that are gone, and
// makes those of uplinks find their way anew. Indexes are used again, so what
// names one must not outlive it.
func (t *Table) ForgetDevices(indexes ...uint32) (int, error) {
	n4, err4 := each(t, 4, leavesBy[layout.V4](indexes))
	n6, err6 := each(t, 6, leavesBy[layout.V6](indexes))
	return n4 + n6, errors.Join(err4, err6)
}

func leavesBy[A layout.IP](indexes []uint32) func(*layout.CtKey[A], *layout.CtEntry[A]) verdict {
	return func(_ *layout.CtKey[A], e *layout.CtEntry[A]) verdict {
		if e.Kind != layout.CtRecord {
			return keep
		}
		result := keep
		for dir := range e.OutIfindex {
			if !slices.Contains(indexes, e.OutIfindex[dir]) {
				continue
			}
			if e.OutKind[dir] == layout.DevicePod {
				return remove
			}
			result = unconfirm
		}
		return result
	}
}
