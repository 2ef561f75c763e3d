// SPDX-License-Identifier: Apache-2.0

package services

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/ids"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/bpf/layout"
)

// transaction takes some services from what is programmed to what is desired.
type transaction struct {
	*Programmer
	desire   func(name string) ([]Port, []Problem)
	queue    []string
	wanted   map[string][]Port
	problems map[string][]Problem
	retry    map[string]struct{}
	// released are frontends that lost their holder; those that get none are
	// deleted.
	released map[tables.FrontendKey]struct{}
	plans    []*plan
	full     map[string]struct{} // maps that had no room
	staleUDP bool
}

// plan is the change of one service port.
type plan struct {
	*port
	want Port
	// next is where the backends will stand.
	next [2]backing
	// fresh are ranges that no frontend has been switched to yet.
	fresh  [2]bool
	writes [2][]tables.BackendWrite
	// before are the claims that the port had.
	before []Claim
	failed bool
}

func (tx *transaction) run(names []string) {
	for _, name := range names {
		tx.enqueue(name)
	}
	// The queue grows while it is walked: a released frontend may be what
	// another service waits for.
	for i := 0; i < len(tx.queue); i++ {
		tx.release(tx.queue[i])
	}
	slices.Sort(tx.queue)
	for _, name := range tx.queue {
		tx.match(name)
	}
	tx.number()
	tx.claim()
	for _, plan := range tx.plans {
		tx.place(plan)
	}
	for _, f := range tables.Families {
		tx.writeBackends(f)
	}
	for _, plan := range tx.plans {
		tx.settle(plan)
	}
	for _, f := range tables.Families {
		tx.writeFrontends(f)
		tx.deleteFrontends(f)
	}
	tx.collect()
}

func (tx *transaction) enqueue(name string) {
	if _, ok := tx.wanted[name]; ok {
		return
	}
	ports, problems := tx.desire(name)
	tx.wanted[name] = ports
	tx.problems[name] = problems
	tx.queue = append(tx.queue, name)
}

func (tx *transaction) fail(p *plan, err error, what string) {
	p.failed = true
	problem := writeProblem(err, what)
	for _, known := range tx.problems[p.service] {
		if known == problem {
			return
		}
	}
	tx.problems[p.service] = append(tx.problems[p.service], problem)
	tx.retry[p.service] = struct{}{}
}

// release gives up what a service has and no longer wants.
func (tx *transaction) release(name string) {
	s := tx.services[name]
	if s == nil {
		return
	}
	for _, key := range s.waiting {
		delete(tx.waiters[key], name)
		if len(tx.waiters[key]) == 0 {
			delete(tx.waiters, key)
		}
	}
	s.waiting = nil
	for _, port := range s.ports {
		want := find(tx.wanted[name], port.portName)
		for _, c := range port.claims {
			if want != nil && slices.ContainsFunc(want.Claims, func(w Claim) bool { return w.Key == c.Key }) {
				continue
			}
			tx.slots[c.Key].holder, tx.slots[c.Key].last = nil, name
			tx.released[c.Key] = struct{}{}
			tx.staleUDP = tx.staleUDP || port.proto == protoUDP
			for waiter := range tx.waiters[c.Key] {
				tx.enqueue(waiter)
			}
		}
	}
}

const protoUDP = 17

func find(ports []Port, n portName) *Port {
	for i := range ports {
		if ports[i].Name == n.name && ports[i].Proto == n.proto {
			return &ports[i]
		}
	}
	return nil
}

// match pairs what a service has with what it wants, port by port.
func (tx *transaction) match(name string) {
	s := tx.services[name]
	if s == nil {
		s = &service{}
	}
	var kept []*port
	for i := range tx.wanted[name] {
		want := tx.wanted[name][i]
		n := portName{want.Name, want.Proto}
		at := slices.IndexFunc(s.ports, func(p *port) bool { return p.portName == n })
		var pt *port
		if at >= 0 {
			pt = s.ports[at]
		} else {
			pt = &port{service: name, portName: n, idKey: IDKey(name, n.name, n.proto)}
		}
		pt.number, pt.affinity = want.Number, want.Affinity
		kept = append(kept, pt)
		tx.plans = append(tx.plans, &plan{port: pt, want: want, before: pt.claims})
	}
	for _, old := range s.ports {
		if !slices.Contains(kept, old) {
			tx.discard(old)
		}
	}
	if len(kept) == 0 {
		delete(tx.services, name)
		return
	}
	s.ports = kept
	tx.services[name] = s
}

func keysOf(claims ...[]Claim) []tables.FrontendKey {
	var keys []tables.FrontendKey
	for _, list := range claims {
		for _, c := range list {
			keys = append(keys, c.Key)
		}
	}
	return keys
}

// discard leaves the ranges and the number of a port that is gone to be
// collected when its frontends are.
func (tx *transaction) discard(p *port) {
	keys := keysOf(p.claims)
	for _, f := range tables.Families {
		if rng := p.family[f].rng; rng.Capacity > 0 {
			tx.garbage = append(tx.garbage, garbage{family: f, rng: rng, keys: keys})
		}
	}
	key := p.idKey
	tx.garbage = append(tx.garbage, garbage{id: &key, idWas: p.id, keys: keys})
}

// number makes sure that every port has a number.
func (tx *transaction) number() {
	keys := make([]tables.IDKey, 0, len(tx.plans))
	for _, p := range tx.plans {
		keys = append(keys, p.idKey)
	}
	// A port that comes back while its number waits to be collected keeps it.
	if len(tx.garbage) > 0 {
		alive := make(map[tables.IDKey]struct{}, len(keys))
		for _, key := range keys {
			alive[key] = struct{}{}
		}
		tx.garbage = slices.DeleteFunc(tx.garbage, func(g garbage) bool {
			if g.id == nil {
				return false
			}
			_, ok := alive[*g.id]
			return ok
		})
	}
	failed := tx.ids.Ensure(keys)
	for _, p := range tx.plans {
		if err, ok := failed[p.idKey]; ok {
			if errors.Is(err, ids.ErrFull) {
				tx.full["ids"] = struct{}{}
			}
			tx.fail(p, err, "give the port a number")
			continue
		}
		p.id, _ = tx.ids.Get(p.idKey)
	}
}

// claim gives frontends to ports. First come those that the kernel says are the
// port's already, so that after a restart everybody keeps what he had.
func (tx *transaction) claim() {
	for _, p := range tx.plans {
		p.claims = nil
	}
	for _, p := range tx.plans {
		for _, c := range p.want.Claims {
			s := tx.slots[c.Key]
			if s == nil {
				continue
			}
			mine := s.holder == p.port
			if s.holder == nil && s.present && p.id != 0 && s.value.ServiceID == p.id {
				mine = true
			}
			if mine {
				s.holder = p.port
				p.claims = append(p.claims, c)
			}
		}
	}
	for _, p := range tx.plans {
		for _, c := range p.want.Claims {
			s := tx.slots[c.Key]
			if s == nil {
				s = &slot{}
				tx.slots[c.Key] = s
			}
			switch s.holder {
			case nil:
				s.holder = p.port
				p.claims = append(p.claims, c)
			case p.port:
			default:
				tx.clash(p, c, s.holder)
			}
		}
	}
}

func (tx *transaction) clash(p *plan, c Claim, holder *port) {
	s := tx.services[p.service]
	s.waiting = append(s.waiting, c.Key)
	if tx.waiters[c.Key] == nil {
		tx.waiters[c.Key] = map[string]struct{}{}
	}
	tx.waiters[c.Key][p.service] = struct{}{}
	tx.problems[p.service] = append(tx.problems[p.service], Problem{
		Reason: ReasonAddressInUse,
		Field:  fieldOf(c.Flags, p.want.Index),
		Message: fmt.Sprintf("%s %s is held by service %s; that one keeps it", KindOf(c.Flags), c.Key,
			holder.service),
	})
}

// writeBackends writes the elements of all ports, before any frontend is
// switched to them.
func (tx *transaction) writeBackends(f tables.Family) {
	var all []tables.BackendWrite
	for _, p := range tx.plans {
		if !p.failed {
			all = append(all, p.writes[f]...)
		}
	}
	if len(all) == 0 || tx.tables.PutBackends(f, all) == nil {
		return
	}
	for _, p := range tx.plans {
		if p.failed || len(p.writes[f]) == 0 {
			continue
		}
		if err := tx.tables.PutBackends(f, p.writes[f]); err != nil {
			tx.fail(p, err, "write backends_"+f.String())
		}
	}
}

// writeFrontends switches frontends to their ports' places.
func (tx *transaction) writeFrontends(f tables.Family) {
	type owned struct {
		entry tables.FrontendEntry
		plan  *plan
	}
	var writes []owned
	for _, p := range tx.plans {
		for _, c := range p.claims {
			if c.Key.Family != f {
				continue
			}
			s := tx.slots[c.Key]
			if p.failed {
				if s.present && s.value.ServiceID != p.id {
					// It leads to what the last holder left; that must go even
					// though the new one cannot take its place yet.
					tx.released[c.Key] = struct{}{}
				}
				continue
			}
			if want := p.value(c); !s.present || s.value != want {
				writes = append(writes, owned{tables.FrontendEntry{Key: c.Key, Value: want}, p})
			}
		}
	}
	if len(writes) == 0 {
		return
	}
	entries := make([]tables.FrontendEntry, len(writes))
	for i, w := range writes {
		entries[i] = w.entry
	}
	err := tx.tables.PutFrontends(f, entries)
	full := map[string]*leftOut{}
	for _, w := range writes {
		if err != nil {
			if single := tx.tables.PutFrontends(f, []tables.FrontendEntry{w.entry}); single != nil {
				if errors.Is(single, unix.E2BIG) {
					tx.leaveOut(full, w.plan, w.entry)
				} else {
					tx.fail(w.plan, single, fmt.Sprintf("write %s to frontends_%s", w.entry.Key, f))
				}
				if s := tx.slots[w.entry.Key]; s.present && s.value.ServiceID != w.plan.id {
					tx.released[w.entry.Key] = struct{}{}
				}
				continue
			}
		}
		s := tx.slots[w.entry.Key]
		if at := &w.plan.family[f]; s.present && s.value.First == at.rng.First && s.value.Count > w.entry.Value.Count {
			at.shrunk = tx.now() // perhaps later than planned, after failures
		}
		s.value, s.present = w.entry.Value, true
	}
	if len(full) > 0 {
		tx.tellFull(f, full)
	}
}

// leftOut is what the full map of frontends has no room for of a service.
type leftOut struct {
	first tables.FrontendEntry
	field string
	count int
}

func (tx *transaction) leaveOut(full map[string]*leftOut, p *plan, e tables.FrontendEntry) {
	p.failed = true
	tx.retry[p.service] = struct{}{}
	if full[p.service] == nil {
		full[p.service] = &leftOut{first: e, field: fieldOf(layout.FrontendFlags(e.Value.Flags), p.want.Index)}
	}
	full[p.service].count++
}

// tellFull gives every service that was left out of the map one problem.
func (tx *transaction) tellFull(f tables.Family, full map[string]*leftOut) {
	tx.full["frontends_"+f.String()] = struct{}{}
	entries, _ := tx.Fill(f)
	for name, out := range full {
		tx.problems[name] = append(tx.problems[name], Problem{
			Reason: ReasonMapFull,
			Field:  out.field,
			Message: fmt.Sprintf("frontends_%s is full (%d of %d entries; see --grow-at and --limit-frontends); left out of this service: %d, the first %s %s",
				f, entries, tx.tables.FrontendCapacity(f), out.count,
				KindOf(layout.FrontendFlags(out.first.Value.Flags)), out.first.Key),
		})
	}
}

// deleteFrontends removes frontends that nobody took over.
func (tx *transaction) deleteFrontends(f tables.Family) {
	for key := range tx.orphans {
		tx.released[key] = struct{}{}
	}
	var keys []tables.FrontendKey
	for key := range tx.released {
		s := tx.slots[key]
		if key.Family != f || s == nil {
			continue
		}
		if s.holder != nil && s.present && s.value.ServiceID == s.holder.id {
			delete(tx.orphans, key)
			continue
		}
		if s.present {
			keys = append(keys, key)
		} else if s.holder == nil {
			delete(tx.slots, key)
		}
	}
	if len(keys) == 0 {
		return
	}
	slices.SortFunc(keys, CompareKeys)
	batch := tx.tables.DeleteFrontends(f, keys)
	for _, key := range keys {
		if batch != nil {
			if err := tx.tables.DeleteFrontends(f, []tables.FrontendKey{key}); err != nil {
				// What it uses waits for it; the next transaction tries again.
				tx.orphans[key] = struct{}{}
				tx.tellOrphan(f, key, err)
				continue
			}
		}
		if _, was := tx.orphans[key]; was {
			tx.orphaned = tx.now()
			delete(tx.orphans, key)
		}
		if s := tx.slots[key]; s.holder == nil {
			delete(tx.slots, key)
		} else {
			s.present = false
		}
	}
}

// tellOrphan notes at the service that gave a frontend up that it could not be
// removed, once a service.
func (tx *transaction) tellOrphan(f tables.Family, key tables.FrontendKey, err error) {
	name := tx.slots[key].last
	if _, ours := tx.wanted[name]; !ours {
		return // was told when it began
	}
	if _, told := tx.retry[name]; told {
		return
	}
	tx.retry[name] = struct{}{}
	problem := writeProblem(err, fmt.Sprintf("remove %s from frontends_%s", key, f))
	tx.problems[name] = append(tx.problems[name], problem)
}

// CompareKeys orders frontends by address, port and protocol.
func CompareKeys(a, b tables.FrontendKey) int {
	if c := a.AddrPort().Compare(b.AddrPort()); c != 0 {
		return c
	}
	return int(a.Proto) - int(b.Proto)
}
