// SPDX-License-Identifier: Apache-2.0

package services

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/ids"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/bpf/layout"
)

// reader is a program that read a frontend before it was replaced.
type reader struct {
	key   tables.FrontendKey
	value tables.Frontend
	sees  string
	until time.Time
}

// rig runs batches and looks at the maps after every write.
type rig struct {
	*testing.T
	maps    *watched
	clock   *clock
	random  *random
	prog    *Programmer
	current map[tables.FrontendKey]tables.Frontend
	sees    map[tables.FrontendKey]string
	trace   map[tables.FrontendKey][]string
	readers []reader
}

func newRig(t *testing.T, e everything, seed uint64) *rig {
	r := &rig{
		T:      t,
		maps:   &watched{everything: e},
		clock:  &clock{t: time.Unix(1_000_000, 0)},
		random: &random{Rand: rand.New(rand.NewPCG(seed, 42)), wanted: map[string][]Port{}},
	}
	r.maps.after = r.look
	r.restart()
	return r
}

// restart makes a new programmer over the same maps, as a new agent does.
func (r *rig) restart() {
	r.Helper()
	// Starting takes longer than any program runs: see Plane.adopt.
	r.clock.t = r.clock.t.Add(Rest)
	numbers, err := ids.New(r.maps)
	if err != nil {
		r.Fatal(err)
	}
	if r.prog, err = New(r.maps, numbers, r.clock.now); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) read() map[tables.FrontendKey]tables.Frontend {
	all := map[tables.FrontendKey]tables.Frontend{}
	for _, f := range tables.Families {
		if err := r.maps.ReadFrontends(f, func(e tables.FrontendEntry) { all[e.Key] = e.Value }); err != nil {
			r.Fatal(err)
		}
	}
	return all
}

const absent = "absent"

// look records what each frontend leads to, and that programs which read a
// frontend less than Rest ago still find what it led to.
func (r *rig) look() {
	r.Helper()
	now := r.read()
	for k, v := range now {
		if old, ok := r.current[k]; ok && old != v {
			r.readers = append(r.readers, reader{k, old, r.sees[k], r.clock.t.Add(Rest)})
		}
	}
	for k, old := range r.current {
		if _, ok := now[k]; !ok {
			r.readers = append(r.readers, reader{k, old, r.sees[k], r.clock.t.Add(Rest)})
		}
	}
	r.readers = slices.DeleteFunc(r.readers, func(x reader) bool {
		if !r.clock.t.Before(x.until) {
			return true
		}
		if got := resolve(r.T, r.maps, x.key, x.value); got != x.sees {
			r.Fatalf("a program that read %s %v before it was replaced now finds\n%s, not\n%s", x.key, x.until.Sub(r.clock.t), got, x.sees)
		}
		return false
	})
	sees := map[tables.FrontendKey]string{}
	for k, v := range now {
		sees[k] = resolve(r.T, r.maps, k, v)
	}
	for k := range union(sees, r.sees) {
		got, ok := sees[k]
		if !ok {
			got = absent
		}
		r.trace[k] = append(r.trace[k], got)
	}
	r.current, r.sees = now, sees
}

func union[V any](a, b map[tables.FrontendKey]V) map[tables.FrontendKey]struct{} {
	all := map[tables.FrontendKey]struct{}{}
	for _, m := range []map[tables.FrontendKey]V{a, b} {
		for k := range m {
			all[k] = struct{}{}
		}
	}
	return all
}

// candidates returns what each frontend may lead to: what any service that
// wants it wants.
func (r *rig) candidates() map[tables.FrontendKey]map[string]string {
	all := map[tables.FrontendKey]map[string]string{}
	for name, ports := range r.random.wanted {
		for _, p := range ports {
			id, _ := r.prog.ids.Get(IDKey(name, p.Name, p.Proto))
			for _, c := range p.Claims {
				if all[c.Key] == nil {
					all[c.Key] = map[string]string{}
				}
				all[c.Key][name] = describe(id, c.Flags, p.Affinity, c.Key.Family, p.Backends[c.Key.Family])
			}
		}
	}
	return all
}

// begin starts the record of a batch.
func (r *rig) begin() (holders map[tables.FrontendKey]string) {
	r.trace = map[tables.FrontendKey][]string{}
	r.look()
	holders = map[tables.FrontendKey]string{}
	for k := range r.current {
		holders[k], _ = r.prog.Holder(k)
	}
	return holders
}

// settled checks that the maps hold what is wanted.
func (r *rig) settled(before map[tables.FrontendKey]string) {
	r.Helper()
	candidates := r.candidates()
	for k, got := range r.sees {
		holder, _ := r.prog.Holder(k)
		want, ok := candidates[k][holder]
		if !ok {
			r.Fatalf("%s is there although %q does not want it", k, holder)
		}
		if got != want {
			r.Fatalf("%s leads to\n%s, wanted is\n%s", k, got, want)
		}
		if old := before[k]; old != "" && old != holder {
			if _, still := candidates[k][old]; still {
				r.Fatalf("%s went from %s to %s although the former still wants it", k, old, holder)
			}
		}
	}
	for k := range candidates {
		if _, ok := r.sees[k]; !ok {
			r.Fatalf("%s is missing", k)
		}
	}
}

// apply runs one batch and checks every step of it.
func (r *rig) apply(names []string) Result {
	r.Helper()
	before := r.begin()
	result := r.prog.Apply(names, r.random.desire)
	for k, steps := range r.trace {
		first, last := steps[0], steps[len(steps)-1]
		switched := false
		for _, s := range steps {
			switch {
			case s == last:
				switched = true
			case s == first && !switched:
			default:
				r.Fatalf("%s: neither before nor after, or back:\nbefore %s\nafter  %s\nseen   %s", k, first, last, s)
			}
		}
	}
	if len(result.Retry) == 0 {
		r.settled(before)
	}
	return result
}

func testBatches(t *testing.T, e everything, seed uint64, batches int) {
	r := newRig(t, e, seed)
	for range batches {
		r.clock.t = r.clock.t.Add(time.Duration(r.random.IntN(700)) * time.Millisecond)
		names := r.random.batch()
		result := r.apply(names)
		if r.random.IntN(20) == 0 && len(result.Retry) == 0 {
			r.restartClean()
		}
	}
	r.clock.t = r.clock.t.Add(2 * Rest)
	clear(r.random.wanted)
	r.apply(serviceNames)
	if left := r.read(); len(left) != 0 {
		t.Fatalf("%d frontends are left of nothing", len(left))
	}
	r.clock.t = r.clock.t.Add(2 * Rest)
	for _, f := range tables.Families {
		r.prog.ranges[f].Resting()
		if used := r.prog.ranges[f].Used(); used != 0 {
			t.Fatalf("%d elements of backends_%s are lost", used, f)
		}
	}
	if given, _ := r.prog.ids.Len(); given != 0 {
		t.Fatalf("%d numbers are lost", given)
	}
}

// restartClean restarts the agent with everything as it should be: it must
// write nothing.
func (r *rig) restartClean() {
	r.Helper()
	writes := r.maps.writes
	r.restart()
	before := r.begin()
	r.prog.Apply(serviceNames, r.random.desire)
	if _, err := r.prog.Prune(); err != nil {
		r.Fatal(err)
	}
	if n := r.maps.writes - writes; n != 0 {
		r.Fatalf("a restart with nothing changed wrote %d entries", n)
	}
	r.settled(before)
}

// TestEveryWrite checks after every single map write of random batches that
// each frontend leads to what it led to before or to what it leads to after.
func TestEveryWrite(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { testBatches(t, newMemory(4096), seed, 80) })
	}
}

// TestEveryWriteOnRealMaps is TestEveryWrite on the kernel's maps.
func TestEveryWriteOnRealMaps(t *testing.T) {
	testBatches(t, realMaps(t, 4096), 77, 60)
}

// TestCrash ends the agent after the n-th write of a batch, for every n: the
// next one finishes the batch, and at no time leads a frontend elsewhere.
func TestCrash(t *testing.T) {
	for seed := range uint64(2) {
		for n := 0; ; n++ {
			e := newMemory(4096)
			r := newRig(t, e, seed)
			for range 12 {
				r.clock.t = r.clock.t.Add(300 * time.Millisecond)
				r.apply(r.random.batch())
			}
			names := r.random.batch()
			r.begin()
			left := n
			crashed := false
			r.maps.fails = func() bool {
				left--
				return left < 0
			}
			func() {
				defer func() {
					if recover() != nil {
						crashed = true
					}
				}()
				after := r.maps.after
				r.maps.after = func() {
					after()
					if left == 0 {
						panic("crash")
					}
				}
				if n == 0 {
					panic("crash")
				}
				r.prog.Apply(names, r.random.desire)
			}()
			r.maps.fails, r.maps.after = nil, r.look
			before := r.sees
			r.restart()
			r.trace = map[tables.FrontendKey][]string{}
			r.look()
			r.prog.Apply(serviceNames, r.random.desire)
			if _, err := r.prog.Prune(); err != nil {
				t.Fatal(err)
			}
			r.settled(nil)
			for k, steps := range r.trace {
				for _, s := range steps {
					if was, ok := before[k]; s != steps[len(steps)-1] && (ok && s != was || !ok && s != absent) {
						t.Fatalf("seed %d, crash after %d writes: %s led to %s", seed, n, k, s)
					}
				}
			}
			if !crashed {
				break
			}
		}
	}
}

// TestFailingWrites lets writes fail at random: frontends never dangle, and
// retries without failures bring everything about.
func TestFailingWrites(t *testing.T) {
	for seed := range uint64(6) {
		r := newRig(t, newMemory(4096), seed)
		known := map[string]bool{absent: true}
		for range 50 {
			r.clock.t = r.clock.t.Add(time.Duration(r.random.IntN(700)) * time.Millisecond)
			names := r.random.batch()
			rate := r.random.IntN(4)
			r.maps.fails = func() bool { return rate > 0 && r.random.IntN(4) < rate }
			r.begin()
			result := r.prog.Apply(names, r.random.desire)
			r.learn(known)
			for k, steps := range r.trace {
				for _, s := range steps {
					if !known[s] {
						t.Fatalf("seed %d: %s leads to %s, which nobody ever wanted", seed, k, s)
					}
				}
			}
			r.maps.fails = nil
			if r.random.IntN(2) == 0 {
				continue // leave it failed for the next batch to cope with
			}
			retry := append(result.Retry, failedBefore(r)...)
			for range 5 {
				if len(retry) == 0 {
					break
				}
				r.clock.t = r.clock.t.Add(2 * Rest)
				retry = r.prog.Apply(retry, r.random.desire).Retry
			}
			r.learn(known)
			if len(retry) > 0 {
				t.Fatalf("seed %d: %v still fail without failures", seed, retry)
			}
			r.look()
			r.settled(map[tables.FrontendKey]string{})
		}
	}
}

// learn adds what frontends may lead to now to what is known.
func (r *rig) learn(known map[string]bool) {
	for _, byService := range r.candidates() {
		for _, s := range byService {
			known[s] = true
		}
	}
}

// failedBefore returns all services: those that failed in earlier batches are
// among them.
func failedBefore(*rig) []string { return serviceNames }

// TestFull fills the array of backends: those who do not fit get an error and
// keep what they had, the others go on.
func TestFull(t *testing.T) {
	r := newRig(t, newMemory(64), 1)
	one := func(i, n int) []Port {
		p := Port{Name: "p", Proto: 6, Number: 80}
		p.claim(address(tables.V4, i), tables.V4, 80, 1)
		for b := range n {
			p.Backends[tables.V4] = append(p.Backends[tables.V4], tables.Backend{Addr: address(tables.V4, 100+b), Port: uint16(8000 + i)})
		}
		return []Port{p}
	}
	r.random.wanted["a/a"] = one(1, 32)
	r.random.wanted["a/b"] = one(2, 16)
	if result := r.apply([]string{"a/a", "a/b"}); len(result.Retry) != 0 {
		t.Fatalf("%+v", result)
	}
	r.random.wanted["a/c"] = one(3, 40)
	r.random.wanted["a/d"] = one(4, 8)
	r.begin()
	result := r.prog.Apply([]string{"a/c", "a/d"}, r.random.desire)
	if !slices.Equal(result.Retry, []string{"a/c"}) || len(result.Problems["a/c"]) != 1 || result.Problems["a/c"][0].Reason != ReasonMapFull {
		t.Fatalf("%+v", result)
	}
	if got := len(r.read()); got != 3 {
		t.Fatalf("%d frontends, want those of a, b and d", got)
	}
	delete(r.random.wanted, "a/a")
	delete(r.random.wanted, "a/b")
	r.random.wanted["a/c"] = one(3, 30)
	r.prog.Apply([]string{"a/a", "a/b"}, r.random.desire)
	r.clock.t = r.clock.t.Add(2 * Rest)
	if result := r.apply([]string{"a/c"}); len(result.Retry) != 0 {
		t.Fatalf("%+v", result)
	}
}

// TestFullFrontends fills the kernel's map of frontends: a service that does not
// fit has one error, which names map, flag and field and counts what is left out.
func TestFullFrontends(t *testing.T) {
	r := newRig(t, realMaps(t, 64), 1)
	r.maps.after = nil
	ports := func(addr, index, from, n int, flags layout.FrontendFlags) []Port {
		p := Port{Name: "p", Proto: 6, Number: 80, Index: index}
		for i := range n {
			p.claim(address(tables.V4, addr), tables.V4, uint16(from+i), flags)
		}
		return []Port{p}
	}
	r.random.wanted["a/most"] = ports(1, 0, 1000, 4095, layout.FrontendClusterIP)
	r.random.wanted["b/over"] = ports(2, 3, 30000, 3, layout.FrontendNodePort)
	r.prog.Apply([]string{"a/most"}, r.random.desire)
	for range 2 {
		result := r.prog.Apply([]string{"b/over"}, r.random.desire)
		problems := result.Problems["b/over"]
		const want = "frontends_v4 is full (4096 of 4096 entries; see --grow-at and --limit-frontends); left out of this service: 2, the first NodePort 10.0.0.2:3000"
		if len(problems) != 1 || problems[0].Reason != ReasonMapFull || problems[0].Field != "ports[3].node_port" ||
			!strings.HasPrefix(problems[0].Message, want) || !slices.Equal(result.Retry, []string{"b/over"}) {
			t.Fatalf("%+v", result)
		}
	}
	delete(r.random.wanted, "a/most")
	r.prog.Apply([]string{"a/most"}, r.random.desire)
	if result := r.prog.Apply([]string{"b/over"}, r.random.desire); len(result.Problems["b/over"]) != 0 || len(result.Retry) != 0 {
		t.Fatalf("with room: %+v", result)
	}
}

// TestClash lets two services want one address: the first keeps it, the other
// has an error that names address, port and holder, and gets it in the end.
func TestClash(t *testing.T) {
	r := newRig(t, newMemory(64), 1)
	with := func(port uint16) []Port {
		p := Port{Name: "p", Proto: 17, Number: 53}
		p.claim(address(tables.V4, 9), tables.V4, 53, 4)
		p.Backends[tables.V4] = []tables.Backend{{Addr: address(tables.V4, 100), Port: port}}
		return []Port{p}
	}
	r.random.wanted["z/first"] = with(1)
	r.apply([]string{"z/first"})
	r.random.wanted["a/second"] = with(2)
	result := r.apply([]string{"a/second"})
	problems := result.Problems["a/second"]
	const want = "ExternalIP 10.0.0.9:53/UDP is held by service z/first; that one keeps it"
	if len(problems) != 1 || problems[0].Reason != ReasonAddressInUse || problems[0].Message != want ||
		problems[0].Field != "external_ips" {
		t.Fatalf("%+v", problems)
	}
	r.restart()
	r.prog.Apply([]string{"a/second", "z/first"}, r.random.desire)
	if holder, _ := r.prog.Holder(with(1)[0].Claims[0].Key); holder != "z/first" {
		t.Fatalf("after a restart %s holds it", holder)
	}
	delete(r.random.wanted, "z/first")
	result = r.apply([]string{"z/first"})
	if problems, ok := result.Problems["a/second"]; !ok || len(problems) != 0 {
		t.Fatalf("the second was not given what the first left: %+v", result)
	}
	if !result.StaleUDP {
		t.Fatal("flows to the first may go on")
	}
}

// TestInPlace drops the last backends and appends others: soon after, in a new
// range, since programs may still look behind the new end; later, in place.
func TestInPlace(t *testing.T) {
	r := newRig(t, newMemory(64), 1)
	set := func(hosts ...int) int {
		p := Port{Name: "p", Proto: 6, Number: 80}
		p.claim(address(tables.V4, 1), tables.V4, 80, 1)
		for _, h := range hosts {
			p.Backends[tables.V4] = append(p.Backends[tables.V4], tables.Backend{Addr: address(tables.V4, h), Port: 80})
		}
		r.random.wanted["a/a"] = []Port{p}
		before := r.maps.writes
		r.apply([]string{"a/a"})
		return r.maps.writes - before
	}
	set(1, 2, 3, 4, 5, 6)
	if n := set(1, 2, 3, 4); n != 1 {
		t.Errorf("dropping the last wrote %d entries, want the frontend alone", n)
	}
	r.clock.t = r.clock.t.Add(Rest / 2)
	if n := set(1, 2, 3, 4, 7, 8); n != 7 {
		t.Errorf("appending soon after wrote %d entries, want a new range of 6 and the frontend", n)
	}
	r.clock.t = r.clock.t.Add(2 * Rest)
	if n := set(1, 2, 3, 4, 7, 8, 9); n != 2 {
		t.Errorf("appending wrote %d entries, want the new one and the frontend", n)
	}
}

// TestUnclaimed restarts with a frontend that nobody has claimed yet: what it
// leads to is not known to be gone before Prune.
func TestUnclaimed(t *testing.T) {
	r := newRig(t, newMemory(64), 1)
	r.maps.after = nil
	backend := tables.Backend{Addr: address(tables.V4, 100), Port: 53}
	p := Port{Name: "dns", Proto: 17, Number: 53, Backends: [2][]tables.Backend{{backend}}}
	p.claim(address(tables.V4, 1), tables.V4, 53, 1)
	key := p.Claims[0].Key
	r.prog.Apply([]string{"a/b"}, func(string) ([]Port, []Problem) { return []Port{p}, nil })
	r.restart()
	if !r.prog.Answers(key, backend.Addr, backend.Port) {
		t.Fatal("a backend of an unclaimed frontend counts as gone")
	}
	if _, err := r.prog.Prune(); err != nil {
		t.Fatal(err)
	}
	if r.prog.Answers(key, backend.Addr, backend.Port) {
		t.Fatal("a backend of a pruned frontend counts as there")
	}
}

// TestFailingRemoval removes a service while nothing can be deleted: its error
// says so, it is tried again, and then nothing of it is left.
func TestFailingRemoval(t *testing.T) {
	r := newRig(t, newMemory(4096), 1)
	var name string
	for name == "" {
		r.apply(r.random.batch())
		for n, s := range r.prog.services {
			if len(s.ports[0].claims) > 0 {
				name = n
			}
		}
	}
	gone := func(string) ([]Port, []Problem) { return nil, nil }
	r.maps.after, r.maps.fails = nil, func() bool { return true }
	result := r.prog.Apply([]string{name}, gone)
	if problems := result.Problems[name]; len(problems) != 1 || !slices.Equal(result.Retry, []string{name}) {
		t.Fatalf("problems %v, retry %v; want one of %s, and another attempt", problems, result.Retry, name)
	}
	r.maps.fails = nil
	result = r.prog.Apply(result.Retry, gone)
	if len(result.Problems[name]) != 0 || len(result.Retry) != 0 || len(r.prog.orphans) != 0 {
		t.Fatalf("problems %v, retry %v, left %v", result.Problems[name], result.Retry, r.prog.orphans)
	}
}
