// SPDX-License-Identifier: Apache-2.0

package tables

import (
	"maps"
	"sync"
)

// Operations on entries of maps.
const (
	Put    = "put"
	Delete = "delete"
)

// Write names what was done to entries of a map.
type Write struct {
	Map       string
	Operation string
}

// writes counts entries that were written, so that one can see that a restart
// with nothing changed writes nothing.
type writes struct {
	mu     sync.Mutex
	counts map[Write]uint64
}

// done counts n entries unless writing them failed, and returns the error. Of a
// batch that failed half way it is not known how many were written.
func (w *writes) done(name, operation string, n int, err error) error {
	if err != nil || n == 0 {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.counts == nil {
		w.counts = map[Write]uint64{}
	}
	w.counts[Write{name, operation}] += uint64(n)
	return nil
}

// Writes returns how many entries have been written since the start, by map and
// operation.
func (k *Kernel) Writes() map[Write]uint64 {
	k.writes.mu.Lock()
	defer k.writes.mu.Unlock()
	return maps.Clone(k.writes.counts)
}
