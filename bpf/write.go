// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

// batchSize is how many elements a batch call carries at most.
const batchSize = 4096

// WriteBackends writes elements [first, first+len(elems)) of the family's
// backends.
//
// No frontend may reach an element that is written, nor may one have reached
// it since before the last [Dataplane.Quiesce]: the kernel copies elements
// without a lock, and a program would read the address of one backend with
// the port of another. So, for a service whose backends are [first, first+count):
//
//   - grow within the range's capacity: write behind the last, then raise the
//     count by UpdateFrontends;
//   - shrink by the last ones: lower the count by UpdateFrontends; the freed
//     elements may be written after Quiesce;
//   - anything else (exchange or remove one in the middle, change flags, grow
//     beyond the capacity): write a whole new range, then switch the frontends
//     to it by UpdateFrontends; the old range may be written after Quiesce.
//
// Each frontend update is atomic, so each lookup finds the service before the
// change or after it. Keep the order of the backends that stay: a UDP socket
// finds its backend sooner where it stood before.
//
// The array is written by system calls and not through a mapping: a mapping
// counts whole in the process's resident memory.
func WriteBackends[A layout.IP](m *FamilyMaps, first uint32, elems []layout.Backend[A]) error {
	if uint64(first)+uint64(len(elems)) > uint64(m.Backends.MaxEntries()) {
		return fmt.Errorf("write backends [%d,%d): the map holds %d", first, uint64(first)+uint64(len(elems)),
			m.Backends.MaxEntries())
	}
	keys := make([]uint32, min(len(elems), batchSize))
	for len(elems) > 0 {
		n := min(len(elems), batchSize)
		for i := range n {
			keys[i] = first + uint32(i)
		}
		if err := update(m.Backends, keys[:n], elems[:n]); err != nil {
			return fmt.Errorf("write backends from %d on: %w", first, err)
		}
		first += uint32(n)
		elems = elems[n:]
	}
	return nil
}

// ReadBackends reads elements [first, first+n) of the family's backends.
func ReadBackends[A layout.IP](m *FamilyMaps, first, n uint32) ([]layout.Backend[A], error) {
	elems := make([]layout.Backend[A], n)
	for i := range elems {
		if err := m.Backends.Lookup(first+uint32(i), &elems[i]); err != nil {
			return nil, fmt.Errorf("read backend %d: %w", first+uint32(i), err)
		}
	}
	return elems, nil
}

// UpdateFrontends creates or replaces frontends; keys and values go in pairs.
// Each is replaced atomically, and all when it returns nil.
func UpdateFrontends[A layout.IP](m *FamilyMaps, keys []layout.FrontendKey[A], values []layout.Frontend) error {
	if err := UpdateBatch(m.Frontends, keys, values); err != nil {
		return fmt.Errorf("update frontends: %w", err)
	}
	return nil
}

// DeleteFrontends deletes frontends; ones that are not there count as deleted.
func DeleteFrontends[A layout.IP](m *FamilyMaps, keys []layout.FrontendKey[A]) error {
	if err := DeleteBatch(m.Frontends, keys); err != nil {
		return fmt.Errorf("delete frontends: %w", err)
	}
	return nil
}

// UpdateBatch creates or replaces many elements of a map.
func UpdateBatch[K, V any](m *ebpf.Map, keys []K, values []V) error {
	if len(keys) != len(values) {
		return fmt.Errorf("%d keys for %d values", len(keys), len(values))
	}
	for len(keys) > 0 {
		n := min(len(keys), batchSize)
		if err := update(m, keys[:n], values[:n]); err != nil {
			return err
		}
		keys, values = keys[n:], values[n:]
	}
	return nil
}

// update writes one batch, singly when it is one or the map has no batches
// (an LPM trie before 5.15 has none, for instance).
func update[K, V any](m *ebpf.Map, keys []K, values []V) error {
	if len(keys) > 1 {
		_, err := m.BatchUpdate(keys, values, nil)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
	}
	for i := range keys {
		if err := m.Put(&keys[i], &values[i]); err != nil {
			return err
		}
	}
	return nil
}

// DeleteBatch deletes many elements of a map; ones that are not there count as
// deleted.
func DeleteBatch[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n := 0
		if len(keys) > 1 {
			var err error
			n, err = m.BatchDelete(keys[:min(len(keys), batchSize)], nil)
			if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) && !errors.Is(err, ebpf.ErrNotSupported) {
				return err
			}
			if err == nil {
				keys = keys[n:]
				continue
			}
			keys = keys[n:] // the batch stopped at a missing one
		}
		if err := m.Delete(&keys[0]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		keys = keys[1:]
	}
	return nil
}

// Each calls f for every element of a hash, LRU or LPM map, until f returns
// false. An element that is written or deleted meanwhile may or may not be
// seen; f may delete the one it is given.
func Each[K, V any](m *ebpf.Map, f func(K, V) bool) error {
	var keys []K
	var values []V
	err := batches(m, func(n int) (any, any) {
		keys, values = make([]K, n), make([]V, n)
		return keys, values
	}, func(n int) (bool, error) {
		for i := range n {
			if !f(keys[i], values[i]) {
				return false, nil
			}
		}
		return true, nil
	})
	if errors.Is(err, errNoBatches) {
		return eachSingly(m, f)
	}
	return err
}

// errNoBatches says that a map cannot be read in batches.
var errNoBatches = errors.New("the map has no batches")

// batches reads all elements of a map, many at a time. room makes buffers for n
// of them, and visit is told how many were read into the last ones, and whether
// to go on.
func batches(m *ebpf.Map, room func(n int) (keys, values any), visit func(n int) (more bool, err error)) error {
	size := batchSize
	keys, values := room(size)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		switch {
		case errors.Is(err, ebpf.ErrNotSupported):
			return errNoBatches
		case errors.Is(err, unix.ENOSPC) && size < 1<<20:
			// A hash bucket holds more than asked for.
			size *= 2
			keys, values = room(size)
			continue
		case err != nil && !errors.Is(err, ebpf.ErrKeyNotExist):
			return fmt.Errorf("read %s: %w", m, err)
		}
		if more, failed := visit(n); failed != nil || !more {
			return failed
		}
		if err != nil {
			return nil
		}
	}
}

func eachSingly[K, V any](m *ebpf.Map, f func(K, V) bool) error {
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		if !f(k, v) {
			return nil
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read %s: %w", m, err)
	}
	return nil
}

// ReadCounters reads all counters, summed over CPUs.
func (d *Dataplane) ReadCounters() (map[layout.CounterKey]layout.Counter, error) {
	out := make(map[layout.CounterKey]layout.Counter)
	var k layout.CounterKey
	var v []layout.Counter
	it := d.Counters.Iterate()
	for it.Next(&k, &v) {
		out[k] = layout.Sum(v)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return out, nil
}

// WriteConfig writes the one element of config. The kernel copies it without a
// lock, so a program may see some fields old and some new; fields that must
// change together belong into a word of their own. [layout.ConfigBehind] is not
// the caller's to set.
func (d *Dataplane) WriteConfig(c layout.Config) error {
	d.configMu.Lock()
	defer d.configMu.Unlock()
	return d.writeConfig(c)
}

func (d *Dataplane) writeConfig(c layout.Config) error {
	c.Flags &^= layout.ConfigBehind
	if d.behind {
		c.Flags |= layout.ConfigBehind
	}
	if err := d.Config.Put(uint32(0), &c); err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	return nil
}

// ReadConfig reads it back.
func (d *Dataplane) ReadConfig() (layout.Config, error) {
	var c layout.Config
	if err := d.Config.Lookup(uint32(0), &c); err != nil {
		return c, fmt.Errorf("read config: %w", err)
	}
	c.Flags &^= layout.ConfigBehind
	return c, nil
}

// setBehind tells the programs whether others run before them.
func (d *Dataplane) setBehind(behind bool) error {
	d.configMu.Lock()
	defer d.configMu.Unlock()
	d.behind = behind
	var c layout.Config
	if err := d.Config.Lookup(uint32(0), &c); err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	if (c.Flags&layout.ConfigBehind != 0) == behind {
		return nil
	}
	return d.writeConfig(c)
}
