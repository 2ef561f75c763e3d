// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
)

// barrier waits for running programs. A write into an array of maps returns
// only when every program that could have used the old inner map has ended;
// this one exists for that alone.
type barrier struct {
	mu           sync.Mutex
	outer, inner *ebpf.Map
}

func (b *barrier) open() error {
	spec := &ebpf.MapSpec{Name: "barrier_inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	inner, err := ebpf.NewMap(spec)
	if err != nil {
		return fmt.Errorf("create barrier: %w", err)
	}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Name: "barrier", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4,
		MaxEntries: 1, InnerMap: spec})
	if err != nil {
		inner.Close()
		return fmt.Errorf("create barrier: %w", err)
	}
	b.outer, b.inner = outer, inner
	return nil
}

func (b *barrier) wait() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.outer.Put(uint32(0), b.inner)
}

func (b *barrier) close() {
	if b.outer != nil {
		b.outer.Close()
		b.inner.Close()
	}
}

// Quiesce returns when every run of a program that had begun before the call
// has ended: nobody holds what a map said earlier. It takes milliseconds to
// tens of them, so share one call among many freed ranges.
func (d *Dataplane) Quiesce() error {
	if err := d.barrier.wait(); err != nil {
		return fmt.Errorf("wait for running programs: %w", err)
	}
	return nil
}
