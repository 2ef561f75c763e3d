// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf/layout"
)

// TestMoveWaitsForPrograms breaks what a step waits with. It must end between
// copy and settlement then: a program that found an entry before the copy may
// still write into it, and settled without waiting that would be lost.
func TestMoveWaitsForPrograms(t *testing.T) {
	d := open(t, Options{MaxEstablished: 2048})
	g := d.V4.Established
	const n, limit = 1200, 512 // what a step takes at least; so there are several
	for i := range n {
		key, record := ctRecord(i)
		if err := g.Current().Put(&key, &record); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Grow(g.Current().MaxEntries() + n); err != nil {
		t.Fatal(err)
	}
	current, draining := g.Maps()
	mover := d.NewMover(g)
	for step := 0; g.Draining() != nil; step++ {
		if step > 100 {
			t.Fatal("it does not get empty")
		}
		waits := d.barrier.outer
		broken, err := waits.Clone()
		if err != nil {
			t.Fatal(err)
		}
		broken.Close()
		d.barrier.outer = broken
		before, copied := elements(t, draining), elements(t, current)
		moved, err := mover.Step(limit)
		d.barrier.outer = waits
		if before == 0 && moved.Seen == 0 && err == nil {
			continue // there is nothing to wait for
		}
		if err == nil {
			t.Fatalf("step %d waited for nobody: %+v", step, moved)
		}
		if after := elements(t, draining); after != before {
			t.Errorf("step %d: %d entries are gone that programs may write into", step, before-after)
		}
		if elements(t, current) == copied {
			t.Errorf("step %d: it waits before anything is copied", step)
		}
		// An agent that starts anew copies again what is there.
		mover = d.NewMover(g)
		if moved, err = mover.Step(limit); err != nil || moved.Moved == 0 {
			t.Fatalf("step %d, repeated: %+v, %v", step, moved, err)
		}
	}
	for i := range n {
		if key, _ := ctRecord(i); !found(t, g, key) {
			t.Errorf("record %d is lost", i)
		}
	}
}

// elements counts the entries of a map.
func elements(t *testing.T, m *ebpf.Map) (n int) {
	t.Helper()
	if err := Each(m, func(layout.CtKeyV4, layout.CtEntryV4) bool { n++; return true }); err != nil {
		t.Fatal(err)
	}
	return n
}
