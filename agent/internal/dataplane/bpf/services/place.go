// SPDX-License-Identifier: Apache-2.0

package services

import (
	"fmt"
	"slices"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/ranges"
)

// place decides where a port's backends go.
func (tx *transaction) place(p *plan) {
	if p.failed {
		return
	}
	for _, f := range tables.Families {
		want, draining := p.want.Backends[f], p.want.Draining[f]
		if !slices.ContainsFunc(p.claims, func(c Claim) bool { return c.Key.Family == f }) {
			want, draining = nil, nil // nobody can come by this family
		}
		have := p.family[f]
		if have.rng.Capacity == 0 {
			have = tx.adopt(p.port, f)
			p.family[f] = have
		}
		if p.proto == protoUDP && loses(have, want, draining) {
			tx.staleUDP = true
		}
		next := have
		next.draining = draining
		next.backends = want
		switch {
		case len(want) == 0:
			next.rng = ranges.Range{}
		case slices.Equal(have.backends, want):
			next.backends = have.backends
		case len(want) < len(have.backends) && slices.Equal(have.backends[:len(want)], want) &&
			have.rng.Capacity < 4*ranges.Capacity(uint32(len(want))):
			next.shrunk = tx.now()
		case len(have.backends) > 0 && len(want) > len(have.backends) && len(want) <= int(have.rng.Capacity) &&
			slices.Equal(have.backends, want[:len(have.backends)]) && tx.uncovered(p, f, have):
			n := len(have.backends)
			p.writes[f] = []tables.BackendWrite{{First: have.rng.First + uint32(n), Backends: want[n:]}}
		default:
			rng, err := tx.ranges[f].Allocate(uint32(len(want)))
			if err != nil {
				tx.full["backends_"+f.String()] = struct{}{}
				tx.fail(p, err, fmt.Sprintf("find room for %d backends in backends_%s", len(want), f))
				return
			}
			next = backing{rng: rng, backends: want, draining: draining}
			p.fresh[f] = true
			p.writes[f] = []tables.BackendWrite{{First: rng.First, Backends: want}}
		}
		p.next[f] = next
	}
}

// uncovered tells that no program can look at the elements behind the range's
// last backend: none was dropped from there of late, and no frontend whose last
// write failed still counts it.
func (tx *transaction) uncovered(p *plan, f tables.Family, b backing) bool {
	if tx.now().Sub(b.shrunk) < Rest || tx.now().Sub(tx.orphaned) < Rest {
		return false
	}
	keys := keysOf(p.before, p.claims)
	for key := range tx.orphans {
		keys = append(keys, key)
	}
	for _, key := range keys {
		s := tx.slots[key]
		if s != nil && s.present && key.Family == f && s.value.First == b.rng.First &&
			s.value.Count > uint32(len(b.backends)) {
			return false
		}
	}
	return true
}

// loses tells whether a backend that answered does so no more.
func loses(have backing, want, draining []tables.Backend) bool {
	for _, list := range [][]tables.Backend{have.backends, have.draining} {
		for _, b := range list {
			is := func(x tables.Backend) bool { return x.Addr == b.Addr && x.Port == b.Port }
			if !slices.ContainsFunc(want, is) && !slices.ContainsFunc(draining, is) {
				return true
			}
		}
	}
	return false
}

// adopt finds the range that a port's frontends use since before the agent
// started.
func (tx *transaction) adopt(p *port, f tables.Family) backing {
	for _, c := range p.claims {
		s := tx.slots[c.Key]
		if c.Key.Family != f || !s.present || s.value.Count == 0 || s.value.ServiceID != p.id {
			continue
		}
		at := place{f, s.value.First}
		a, ok := tx.adopted[at]
		if !ok {
			continue
		}
		backends, err := tx.tables.ReadBackends(f, a.rng.First, a.count)
		if err != nil {
			continue // a new range will do; Prune frees this one
		}
		delete(tx.adopted, at)
		// Who wrote it may have dropped backends a moment ago.
		return backing{rng: a.rng, backends: backends, shrunk: tx.now()}
	}
	return backing{}
}

// settle makes the planned places the port's, or gives them up.
func (tx *transaction) settle(p *plan) {
	if p.failed {
		for _, f := range tables.Families {
			if p.fresh[f] {
				tx.ranges[f].Unuse(p.next[f].rng)
			}
		}
		return
	}
	for _, f := range tables.Families {
		if old := p.family[f].rng; old.Capacity > 0 && old != p.next[f].rng {
			tx.garbage = append(tx.garbage, garbage{family: f, rng: old, keys: keysOf(p.before, p.claims)})
		}
		p.family[f] = p.next[f]
	}
}
