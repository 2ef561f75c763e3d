// SPDX-License-Identifier: Apache-2.0

package ranges

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

// TestModel runs random operations against a plain list of owners.
func TestModel(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		size := 1 + r.Uint32N(3000)
		c := &clock{t: time.Unix(1000, 0)}
		const rest = time.Second
		a := New(size, rest, c.now)
		owner := make([]int, size) // 0 free, -1 resting
		freed := make([]time.Time, size)
		live := map[int]Range{}
		next := 0
		for step := range 3000 {
			switch r.IntN(5) {
			case 0, 1:
				n := 1 + r.Uint32N(1<<r.UintN(8))
				rng, err := a.Allocate(n)
				if err != nil {
					if !errors.Is(err, ErrFull) {
						t.Fatal(err)
					}
					if fits(owner, freed, c.t, rest, Capacity(n)) {
						t.Fatalf("seed %d step %d: no range for %d though an aligned one is free", seed, step, n)
					}
					continue
				}
				next++
				check(t, rng, n, size)
				for i := rng.First; i < rng.First+rng.Capacity; i++ {
					if owner[i] > 0 || owner[i] < 0 && c.t.Sub(freed[i]) < rest {
						t.Fatalf("seed %d step %d: element %d of %+v is in use or rests", seed, step, i, rng)
					}
					owner[i] = next
				}
				live[next] = rng
			case 2, 3:
				for id, rng := range live {
					a.Free(rng)
					for i := rng.First; i < rng.First+rng.Capacity; i++ {
						owner[i], freed[i] = -1, c.t
					}
					delete(live, id)
					break
				}
			case 4:
				c.t = c.t.Add(time.Duration(r.IntN(600)) * time.Millisecond)
			}
		}
		for _, rng := range live {
			a.Free(rng)
		}
		c.t = c.t.Add(rest)
		if a.Resting() || a.Used() != 0 {
			t.Fatalf("seed %d: %d elements are lost", seed, a.Used())
		}
		largest := uint32(1)
		for largest*2 <= size {
			largest *= 2
		}
		if _, err := a.Allocate(largest); err != nil {
			t.Fatalf("seed %d: freed ranges did not join: %v", seed, err)
		}
	}
}

func check(t *testing.T, r Range, n, size uint32) {
	t.Helper()
	if r.Capacity < n || r.Capacity >= 2*n && n > 1 || r.Capacity&(r.Capacity-1) != 0 || r.First%r.Capacity != 0 || r.First+r.Capacity > size {
		t.Fatalf("range %+v for %d of %d", r, n, size)
	}
}

// fits tells whether an aligned run of capacity free elements exists.
func fits(owner []int, freed []time.Time, now time.Time, rest time.Duration, capacity uint32) bool {
next:
	for first := uint32(0); first+capacity <= uint32(len(owner)); first += capacity {
		for i := first; i < first+capacity; i++ {
			if owner[i] > 0 || owner[i] < 0 && now.Sub(freed[i]) < rest {
				continue next
			}
		}
		return true
	}
	return false
}

func TestReserve(t *testing.T) {
	c := &clock{t: time.Unix(1000, 0)}
	a := New(1000, time.Second, c.now)
	if r, ok := a.Reserve(64, 5); !ok || r != (Range{64, 8}) {
		t.Fatalf("%+v %v", r, ok)
	}
	for _, bad := range []struct{ first, n uint32 }{{64, 1}, {68, 4}, {0, 128}, {3, 2}, {1000, 1}, {999, 2}, {8, 0}, {1 << 31, 1 << 31}} {
		if r, ok := a.Reserve(bad.first, bad.n); ok {
			t.Errorf("reserved %+v at %d", r, bad.first)
		}
	}
	if r, ok := a.Reserve(72, 3); !ok || r != (Range{72, 4}) {
		t.Fatalf("%+v %v", r, ok)
	}
	if a.Used() != 12 {
		t.Fatalf("used %d", a.Used())
	}
	seen := map[uint32]bool{}
	for {
		r, err := a.Allocate(1)
		if err != nil {
			break
		}
		if seen[r.First] || r.First >= 64 && r.First < 76 {
			t.Fatalf("element %d given twice", r.First)
		}
		seen[r.First] = true
	}
	if len(seen) != 988 {
		t.Fatalf("%d elements were given", len(seen))
	}
}
