// SPDX-License-Identifier: Apache-2.0

package ids

import (
	"errors"
	"fmt"
	"testing"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
)

// table is a map of ids that writes the first element of a batch and fails then,
// and fails every single write too, while broken is set.
type table struct {
	entries map[tables.IDKey]uint32
	broken  bool
}

func (m *table) ReadIDs(each func(tables.IDEntry)) error {
	for k, id := range m.entries {
		each(tables.IDEntry{Key: k, ID: id})
	}
	return nil
}

func (m *table) PutIDs(entries []tables.IDEntry) error {
	for i, e := range entries {
		if m.broken && (i > 0 || len(entries) == 1) {
			return errors.New("device or resource busy")
		}
		m.entries[e.Key] = e.ID
	}
	return nil
}

func (m *table) DeleteIDs(keys []tables.IDKey) error {
	for _, k := range keys {
		delete(m.entries, k)
	}
	return nil
}

// TestFailedWriteKeepsNumber has a batch that is written in part: the number that
// the map then holds must not be given to another, not even after a restart.
func TestFailedWriteKeepsNumber(t *testing.T) {
	m := &table{entries: map[tables.IDKey]uint32{}, broken: true}
	a, err := New(m)
	if err != nil {
		t.Fatal(err)
	}
	if failed := a.Ensure([]tables.IDKey{Key("k", "a"), Key("k", "b")}); len(failed) != 2 {
		t.Fatalf("failed: %v", failed)
	}
	m.broken = false
	for _, keys := range [][]tables.IDKey{{Key("k", "c"), Key("k", "d")}, {Key("k", "b"), Key("k", "a")}} {
		if failed := a.Ensure(keys); len(failed) != 0 {
			t.Fatalf("failed: %v", failed)
		}
		if err := unique(m); err != nil {
			t.Fatal(err)
		}
	}
	for _, natural := range []string{"a", "b", "c", "d"} {
		id, ok := a.Get(Key("k", natural))
		if !ok || m.entries[Key("k", natural)] != id {
			t.Errorf("%s has %d, %v, the map %d", natural, id, ok, m.entries[Key("k", natural)])
		}
	}
}

func unique(m *table) error {
	owners := map[uint32]tables.IDKey{}
	for key, id := range m.entries {
		if other, ok := owners[id]; ok {
			return fmt.Errorf("%d is given to %x and %x", id, key, other)
		}
		owners[id] = key
	}
	return nil
}
