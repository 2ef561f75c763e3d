// SPDX-License-Identifier: Apache-2.0

// Package services programs services into frontends_vN and backends_vN.
//
// What must hold after every single map write: each frontend's set of backends
// is the one before the change or the one after, never a third. A frontend's
// update is atomic, an element's is not, and a program reads the frontend
// first. Hence elements that a frontend covers are never written: a service port
// whose backends change gets a new range, written in whole before any frontend
// is switched to it. Two changes need no new range, because all they do to
// covered elements is to cover more or fewer: dropping the last backends, and
// appending within the range's capacity. A range that is left rests before it
// is used again, so that a program which read the frontend just before the
// switch still finds the old backends.
//
// A key that moves from one service to another is overwritten, not deleted and
// written anew; all releases of a batch come before all claims for that.
package services

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/ids"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/ranges"
	"github.com/millrace-project/millrace/bpf/layout"
)

// Rest is how long a range that frontends left stays unused. Programs run for
// microseconds; a second covers what a hypervisor may steal.
const Rest = time.Second

// IDKind is the kind under which service ports have numbers.
const IDKind = "service-port"

// Tables are the maps that services live in.
type Tables interface {
	tables.Frontends
	tables.Backends
}

// slot is a frontend: what the kernel holds and who it belongs to.
type slot struct {
	value   tables.Frontend
	present bool
	holder  *port
	// last is the service that gave it up last.
	last string
}

// backing is where the backends of a service port stand, in one family.
type backing struct {
	rng      ranges.Range
	backends []tables.Backend
	draining []tables.Backend
	// shrunk is when backends were last dropped in place; elements behind the
	// end rest as freed ranges do.
	shrunk time.Time
}

// port is a service port as programmed.
type port struct {
	service string
	portName
	number uint16
	// affinity is for how many seconds a client keeps its backend.
	affinity uint32
	idKey    tables.IDKey
	id       uint32
	claims   []Claim
	family   [2]backing
}

type service struct {
	ports []*port
	// waiting are frontends that the service wants and another has.
	waiting []tables.FrontendKey
}

// adopted is a range that frontends were found to use at start.
type adopted struct {
	rng   ranges.Range
	count uint32
}

type place struct {
	family tables.Family
	first  uint32
}

// garbage is to be freed once no frontend of keys is left that uses it.
type garbage struct {
	family tables.Family
	rng    ranges.Range
	id     *tables.IDKey // of a port that is gone
	idWas  uint32
	keys   []tables.FrontendKey
}

// Programmer keeps the service maps as desired. It is not safe for concurrent
// use.
type Programmer struct {
	tables   Tables
	ids      *ids.Allocator
	now      func() time.Time
	ranges   [2]*ranges.Allocator
	slots    map[tables.FrontendKey]*slot
	services map[string]*service
	waiters  map[tables.FrontendKey]map[string]struct{}
	adopted  map[place]adopted
	garbage  []garbage
	// orphans have no holder but could not be deleted.
	orphans map[tables.FrontendKey]struct{}
	// orphaned is when one could be at last.
	orphaned time.Time
}

// New adopts what the maps hold: frontends stay until Prune unless a service
// claims them, and ranges in use are not handed out.
func New(t Tables, numbers *ids.Allocator, now func() time.Time) (*Programmer, error) {
	p := &Programmer{
		tables:   t,
		ids:      numbers,
		now:      now,
		services: map[string]*service{},
		waiters:  map[tables.FrontendKey]map[string]struct{}{},
	}
	return p, p.Adopt()
}

// Adopt forgets what it believes to be in the kernel and reads it anew.
func (p *Programmer) Adopt() error {
	for _, f := range tables.Families {
		p.ranges[f] = ranges.New(p.tables.BackendCapacity(f), Rest, p.now)
	}
	p.slots = map[tables.FrontendKey]*slot{}
	p.adopted = map[place]adopted{}
	p.garbage = nil
	p.orphans = map[tables.FrontendKey]struct{}{}
	p.waiters = map[tables.FrontendKey]map[string]struct{}{}
	for _, s := range p.services {
		for _, port := range s.ports {
			p.ids.Release(port.idKey)
		}
	}
	p.services = map[string]*service{}
	counts := map[place]uint32{}
	for _, f := range tables.Families {
		err := p.tables.ReadFrontends(f, func(e tables.FrontendEntry) {
			p.slots[e.Key] = &slot{value: e.Value, present: true}
			if e.Value.Count > 0 {
				at := place{f, e.Value.First}
				counts[at] = max(counts[at], e.Value.Count)
			}
		})
		if err != nil {
			return fmt.Errorf("read frontends: %w", err)
		}
	}
	for at, count := range counts {
		// A range that cannot be reserved overlaps another or lies outside of
		// the array: its frontends are wrong and get a range of their own when
		// their service claims them.
		if rng, ok := p.ranges[at.family].Reserve(at.first, count); ok {
			p.adopted[at] = adopted{rng: rng, count: count}
		}
	}
	return nil
}

// Result is what an Apply did.
type Result struct {
	// Problems has an entry for every service looked at; nil if all is well.
	Problems map[string][]Problem
	// Retry are the services that another attempt may help.
	Retry []string
	// Full are the maps that had no room.
	Full []string
	// StaleUDP tells that flows may exist to backends that answer no more.
	StaleUDP bool
}

// Apply programs services as desire, called once for each, says. Nil ports
// mean that the service is gone.
func (p *Programmer) Apply(names []string, desire func(name string) ([]Port, []Problem)) Result {
	tx := &transaction{
		Programmer: p,
		desire:     desire,
		wanted:     map[string][]Port{},
		problems:   map[string][]Problem{},
		retry:      map[string]struct{}{},
		released:   map[tables.FrontendKey]struct{}{},
		full:       map[string]struct{}{},
	}
	tx.run(names)
	result := Result{Problems: tx.problems, StaleUDP: tx.staleUDP}
	for name := range tx.retry {
		result.Retry = append(result.Retry, name)
	}
	slices.Sort(result.Retry)
	for name := range tx.full {
		result.Full = append(result.Full, name)
	}
	return result
}

// Prune removes frontends that no service claims. It is for when the node is in
// sync and knows all services. It returns how many it removed.
func (p *Programmer) Prune() (int, error) {
	var stale [2][]tables.FrontendKey
	for key, s := range p.slots {
		if s.holder == nil {
			stale[key.Family] = append(stale[key.Family], key)
		}
	}
	removed := 0
	var errs []error
	for _, f := range tables.Families {
		if err := p.tables.DeleteFrontends(f, stale[f]); err != nil {
			errs = append(errs, fmt.Errorf("remove frontends of no service: %w", err))
			continue
		}
		for _, key := range stale[f] {
			delete(p.slots, key)
		}
		removed += len(stale[f])
	}
	if len(p.adopted) > 0 {
		users := map[place][]tables.FrontendKey{}
		for key, s := range p.slots {
			if s.present && s.value.Count > 0 {
				at := place{key.Family, s.value.First}
				users[at] = append(users[at], key)
			}
		}
		for at, a := range p.adopted {
			p.garbage = append(p.garbage, garbage{family: at.family, rng: a.rng, keys: users[at]})
		}
		p.adopted = map[place]adopted{}
	}
	p.collect()
	return removed, errors.Join(errs...)
}

// collect frees what no frontend uses any more.
func (p *Programmer) collect() {
	p.garbage = slices.DeleteFunc(p.garbage, func(g garbage) bool {
		for _, key := range g.keys {
			if p.uses(key, &g) {
				return false
			}
		}
		for key := range p.orphans {
			if p.uses(key, &g) {
				return false
			}
		}
		if g.id != nil {
			p.ids.Release(*g.id)
			return true
		}
		p.ranges[g.family].Free(g.rng)
		return true
	})
}

// uses tells whether the frontend, as the kernel holds it, needs what g names.
func (p *Programmer) uses(key tables.FrontendKey, g *garbage) bool {
	s, ok := p.slots[key]
	if !ok || !s.present {
		return false
	}
	if g.id != nil {
		return s.value.ServiceID == g.idWas
	}
	return s.value.Count > 0 && key.Family == g.family && s.value.First-g.rng.First < g.rng.Capacity
}

// Grow makes use of room that the maps have gained.
func (p *Programmer) Grow() {
	for _, f := range tables.Families {
		p.ranges[f].Grow(p.tables.BackendCapacity(f))
	}
}

// Fill returns how many frontends the kernel holds and how many elements of
// the backends' array are taken.
func (p *Programmer) Fill(f tables.Family) (frontends int, backends uint32) {
	for key, s := range p.slots {
		if key.Family == f && s.present {
			frontends++
		}
	}
	return frontends, p.ranges[f].Used()
}

// Answers tells whether a frontend exists and the backend still answers for it.
// Of a frontend that was found at start and nobody claims yet it is not known:
// until Prune nothing of it is to be ended.
func (p *Programmer) Answers(key tables.FrontendKey, addr tables.Address, portNumber uint16) bool {
	s, ok := p.slots[key]
	if !ok {
		return false
	}
	if s.holder == nil {
		_, orphan := p.orphans[key]
		return s.present && !orphan
	}
	b := &s.holder.family[key.Family]
	is := func(x tables.Backend) bool { return x.Addr == addr && x.Port == portNumber }
	return slices.ContainsFunc(b.backends, is) || slices.ContainsFunc(b.draining, is)
}

// Unclaimed returns the numbers that frontends of no service have: those that
// could not be removed yet.
func (p *Programmer) Unclaimed() map[uint32]struct{} {
	numbers := map[uint32]struct{}{}
	for _, s := range p.slots {
		if s.present && s.holder == nil {
			numbers[s.value.ServiceID] = struct{}{}
		}
	}
	return numbers
}

// UsersOf returns the services that have a backend with one of the addresses.
func (p *Programmer) UsersOf(addresses map[tables.Address]struct{}) []string {
	var names []string
	for name, s := range p.services {
		if slices.ContainsFunc(s.ports, func(port *port) bool { return port.uses(addresses) }) {
			names = append(names, name)
		}
	}
	return names
}

func (p *port) uses(addresses map[tables.Address]struct{}) bool {
	for _, f := range tables.Families {
		for _, b := range p.family[f].backends {
			if _, ok := addresses[b.Addr]; ok {
				return true
			}
		}
	}
	return false
}

// PortOf describes the service port that a number belongs to.
type PortOf struct {
	Service string
	Port    string
}

// Numbers returns the service ports by number.
func (p *Programmer) Numbers() map[uint32]PortOf {
	numbers := make(map[uint32]PortOf, len(p.services))
	for name, s := range p.services {
		for _, port := range s.ports {
			numbers[port.id] = PortOf{Service: name, Port: port.name}
		}
	}
	return numbers
}

// AffinityPort is a service port whose clients keep their backends.
type AffinityPort struct {
	PortOf
	// Seconds is for how long they do.
	Seconds uint32
	// backends get new connections, by family, sorted.
	backends [2][]tables.Backend
}

// Lasts is for how long after its last connection a client keeps its backend.
func (p *AffinityPort) Lasts() time.Duration { return time.Duration(p.Seconds) * time.Second }

// Usable tells whether a client may keep a backend.
func (p *AffinityPort) Usable(f tables.Family, addr tables.Address, number uint16) bool {
	_, found := slices.BinarySearchFunc(p.backends[f], tables.Backend{Addr: addr, Port: number}, compareEnds)
	return found
}

// Affinities returns the service ports with session affinity by number.
func (p *Programmer) Affinities() map[uint32]AffinityPort {
	affinities := map[uint32]AffinityPort{}
	for name, s := range p.services {
		for _, port := range s.ports {
			if port.affinity > 0 {
				affinities[port.id] = AffinityPort{PortOf: PortOf{Service: name, Port: port.name}, Seconds: port.affinity,
					backends: [2][]tables.Backend{port.family[0].backends, port.family[1].backends}}
			}
		}
	}
	return affinities
}

// IDKey returns the key of a service port's number.
func IDKey(service, portName string, proto uint8) tables.IDKey {
	return ids.Key(IDKind, service+"/"+portName+"/"+tables.ProtoName(proto))
}

// Holder returns the service that has a frontend.
func (p *Programmer) Holder(key tables.FrontendKey) (service string, ok bool) {
	s := p.slots[key]
	if s == nil || s.holder == nil {
		return "", false
	}
	return s.holder.service, true
}

// writeProblem describes a failed map write.
func writeProblem(err error, what string) Problem {
	problem := Problem{Reason: ReasonMapWrite, Message: fmt.Sprintf("%s: %v; what was programmed before stays, and it is tried again", what, err)}
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) || errors.Is(err, ranges.ErrFull) || errors.Is(err, ids.ErrFull) {
		problem.Reason = ReasonMapFull
	}
	return problem
}

// value is what the kernel is to hold for a claim.
func (p *port) value(c Claim) tables.Frontend {
	v := tables.Frontend{ServiceID: p.id, Flags: uint32(c.Flags), Affinity: p.affinity}
	if b := &p.family[c.Key.Family]; len(b.backends) > 0 {
		v.First, v.Count = b.rng.First, uint32(len(b.backends))
	}
	return v
}

// kinds of frontends, with the field of the service that they come from.
var kinds = []struct {
	flag        layout.FrontendFlags
	name, field string
}{
	{layout.FrontendClusterIP, "ClusterIP", "cluster_ips"},
	{layout.FrontendLoadBalancer, "LoadBalancer", "load_balancer_ips"},
	{layout.FrontendExternalIP, "ExternalIP", "external_ips"},
}

// KindOf names a frontend's kind as the API does.
func KindOf(flags layout.FrontendFlags) string {
	for _, k := range kinds {
		if flags&k.flag != 0 {
			return k.name
		}
	}
	return "NodePort"
}

// fieldOf names the field of the service that a port's frontend comes from.
func fieldOf(flags layout.FrontendFlags, index int) string {
	for _, k := range kinds {
		if flags&k.flag != 0 {
			return k.field
		}
	}
	return fmt.Sprintf("ports[%d].node_port", index)
}
