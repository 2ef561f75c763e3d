// SPDX-License-Identifier: Apache-2.0

// Package ranges hands out ranges of an array's elements. It is a buddy
// allocator: a range's capacity is a power of two and its first index a
// multiple of that, so that any mix of freeing and allocating coalesces again.
// A freed range rests before it is handed out anew: a program that read the
// range's place before it was freed must not meet another owner's elements.
package ranges

import (
	"errors"
	"fmt"
	"math/bits"
	"time"
)

// ErrFull says that no range of the wanted size is free.
var ErrFull = errors.New("no free range")

// Range is a range of elements.
type Range struct {
	First uint32
	// Capacity is a power of two; 0 for no range at all.
	Capacity uint32
}

// resting is a freed range that is not to be used yet.
type resting struct {
	Range
	since time.Time
}

// Allocator hands out ranges of an array. It is not safe for concurrent use.
type Allocator struct {
	size uint32
	rest time.Duration
	now  func() time.Time
	// free holds, for each order, the first indexes of free ranges of 1<<order
	// elements. lists finds one, index removes a given one.
	free    []map[uint32]struct{}
	used    uint32
	resting []resting
}

// New returns an allocator of an array of size elements. Freed ranges rest for
// rest by the clock now.
func New(size uint32, rest time.Duration, now func() time.Time) *Allocator {
	a := &Allocator{rest: rest, now: now, free: make([]map[uint32]struct{}, 33)}
	for i := range a.free {
		a.free[i] = map[uint32]struct{}{}
	}
	a.Grow(size)
	return a
}

// Grow makes room for size elements; an array never shrinks.
func (a *Allocator) Grow(size uint32) {
	// Cover what is added with the largest aligned ranges.
	for first := a.size; first < size; {
		order := bits.Len32(size-first) - 1
		if first != 0 {
			order = min(order, bits.TrailingZeros32(first))
		}
		a.used += 1 << order
		a.release(Range{First: first, Capacity: 1 << order})
		first += 1 << order
	}
	a.size = max(a.size, size)
}

// Capacity returns the capacity of a range that holds n elements.
func Capacity(n uint32) uint32 {
	if n == 0 {
		return 0
	}
	return 1 << order(n)
}

func order(n uint32) int { return bits.Len32(n - 1) }

// Size returns the number of elements in the array.
func (a *Allocator) Size() uint32 { return a.size }

// Used returns how many elements are handed out or resting.
func (a *Allocator) Used() uint32 { return a.used }

// Allocate returns a range that holds n > 0 elements.
func (a *Allocator) Allocate(n uint32) (Range, error) {
	a.settle()
	if n == 0 || n > a.size {
		return Range{}, fmt.Errorf("%w for %d elements of %d", ErrFull, n, a.size)
	}
	want := order(n)
	for o := want; o < len(a.free); o++ {
		for first := range a.free[o] {
			a.take(first, o, first, want)
			a.used += 1 << want
			return Range{First: first, Capacity: 1 << want}, nil
		}
	}
	return Range{}, fmt.Errorf("%w for %d elements: %d of %d are in use", ErrFull, n, a.used, a.size)
}

// take removes the free range (first, o) and gives back what lies outside of
// the wanted range within it.
func (a *Allocator) take(first uint32, o int, wanted uint32, want int) {
	delete(a.free[o], first)
	for o > want {
		o--
		half := first + 1<<o
		if wanted >= half {
			a.free[o][first] = struct{}{}
			first = half
		} else {
			a.free[o][half] = struct{}{}
		}
	}
}

// Reserve takes the range that starts at first and holds n elements, which the
// kernel was found to use. It reports false if first is no place where a range
// of that size can start or if any of it is taken.
func (a *Allocator) Reserve(first, n uint32) (Range, bool) {
	if n == 0 || n > a.size || first > a.size-n {
		return Range{}, false
	}
	want := order(n)
	if first&(1<<want-1) != 0 {
		return Range{}, false
	}
	for o := want; o < len(a.free); o++ {
		start := first &^ (1<<o - 1)
		if _, ok := a.free[o][start]; ok {
			a.take(start, o, first, want)
			a.used += 1 << want
			return Range{First: first, Capacity: 1 << want}, true
		}
	}
	return Range{}, false
}

// Free gives a range back, to be used again after its rest.
func (a *Allocator) Free(r Range) {
	if r.Capacity == 0 {
		return
	}
	a.resting = append(a.resting, resting{Range: r, since: a.now()})
}

// Unuse gives back a range that no program was ever told of; it needs no rest.
func (a *Allocator) Unuse(r Range) {
	if r.Capacity != 0 {
		a.release(r)
	}
}

// settle frees what has rested.
func (a *Allocator) settle() {
	if len(a.resting) == 0 {
		return
	}
	deadline := a.now().Add(-a.rest)
	i := 0
	for i < len(a.resting) && !a.resting[i].since.After(deadline) {
		a.release(a.resting[i].Range)
		i++
	}
	a.resting = append(a.resting[:0], a.resting[i:]...)
}

func (a *Allocator) release(r Range) {
	o := order(r.Capacity)
	first := r.First
	a.used -= r.Capacity
	for {
		buddy := first ^ 1<<o
		if _, ok := a.free[o][buddy]; !ok {
			break
		}
		delete(a.free[o], buddy)
		first &^= 1 << o
		o++
	}
	a.free[o][first] = struct{}{}
}

// Resting tells whether freed ranges wait for their rest to end.
func (a *Allocator) Resting() bool {
	a.settle()
	return len(a.resting) > 0
}
