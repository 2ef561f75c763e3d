// SPDX-License-Identifier: Apache-2.0

package conntrack

import "testing"

func TestPolicy(t *testing.T) {
	const name = "established_v4"
	for _, c := range []struct {
		what                   string
		percent, wanted, limit uint32
		entries                int
		have                   uint32
		full                   bool
		want                   uint32
	}{
		{what: "room", percent: 80, limit: 1000, entries: 79, have: 100, want: 100},
		{what: "fill", percent: 80, limit: 1000, entries: 80, have: 100, want: 200},
		{what: "no count", percent: 80, limit: 1000, entries: -1, have: 100, want: 100},
		{what: "no room", percent: 80, limit: 1000, entries: -1, have: 100, full: true, want: 400},
		{what: "no further than the limit", percent: 80, limit: 150, entries: 100, have: 100, full: true, want: 150},
		{what: "at the limit", percent: 80, limit: 100, entries: 100, have: 100, full: true, want: 100},
		{what: "beyond the limit", percent: 80, limit: 50, entries: 100, have: 100, full: true, want: 100},
		{what: "never", limit: 1000, entries: 100, have: 100, full: true, want: 100},
		{what: "by flag", percent: 80, wanted: 300, limit: 1000, entries: 0, have: 100, want: 300},
		{what: "by flag, never by itself", wanted: 300, limit: 1000, entries: 100, have: 100, full: true, want: 300},
		{what: "by flag beyond the limit", percent: 80, wanted: 300, limit: 200, entries: 0, have: 100, want: 300},
		{what: "larger than the flag asks", percent: 80, wanted: 50, limit: 1000, entries: 0, have: 100, want: 100},
		{what: "by flag and fill", percent: 80, wanted: 120, limit: 1000, entries: 90, have: 100, want: 200},
		{what: "no overflow", percent: 80, limit: 1<<32 - 1, entries: 3 << 30, have: 3 << 30, want: 1<<32 - 1},
	} {
		p := Policy{Percent: c.percent, Sizes: map[string]uint32{name: c.wanted}, Limits: map[string]uint32{name: c.limit}}
		if got := p.size(name, c.entries, c.have, c.full); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

func TestBudget(t *testing.T) {
	for n, want := range map[int]int{0: 4096, 100_000: 4096, 4_000_000: 40001} {
		if got := budgetFor(n); got != want {
			t.Errorf("%d entries: %d a tick, want %d", n, got, want)
		}
	}
}
