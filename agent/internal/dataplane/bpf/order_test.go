// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/interfaces"
	"github.com/millrace-project/millrace/agent/internal/netnstest"
	mbpf "github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// order runs batches on the real kernel and looks at it after every write.
type order struct {
	*testNode
	random *rand.Rand
	world  *world
	maps   *singly
	prober *prober

	// seen is what each key led to after each write of a batch, routes and
	// settings included.
	seen map[string][]string
	last map[string]string
	// crashAt ends the agent after that many writes; 0 for not.
	crashAt int
	crashes int
}

// crash is what the agent is ended by.
type crash struct{}

func newOrder(t *testing.T, seed uint64) *order {
	n := newNodeOf(t, mbpf.Options{MaxFrontends: 32, MaxBackends: 64, MaxEstablished: 1024, MaxEmbryonic: 1024})
	devices(t)
	o := &order{testNode: n, random: rand.New(rand.NewPCG(seed, 7))}
	o.world = newWorld(o.random)
	o.prober = newProber(t, n.kernel)
	o.maps = &singly{Kernel: tables.NewKernel(n.kernel), random: o.random, written: func(string) {}}
	o.restart()
	o.last = o.look()
	o.maps.written = o.written
	return o
}

// restart makes a plane over the same maps, as a new agent does.
func (o *order) restart() {
	o.Helper()
	classifier, err := interfaces.NewClassifier(nil)
	if err != nil {
		o.Fatal(err)
	}
	o.system = NewSystem(o.kernel, o.pins, o.cgroup)
	o.plane, err = New(Options{Node: "n0", SNATPorts: PortRange{20000, 29999}, FastPath: true, HostNetnsCookie: 9},
		o.store, o.system, o.maps, classifier, o.system.Conntrack(), zap.NewNop())
	if err != nil {
		o.Fatal(err)
	}
}

// written looks at the kernel after a write.
func (o *order) written(table string) {
	o.Helper()
	o.note(o.look())
	if table == "ids" {
		o.idsAreUnique()
	}
	if o.crashAt > 0 {
		if o.crashAt--; o.crashAt == 0 {
			o.crashes++
			panic(crash{})
		}
	}
}

// note keeps what is seen.
func (o *order) note(now map[string]string) {
	for key := range now {
		if _, ok := o.last[key]; !ok {
			o.last[key] = absent
		}
	}
	for key, was := range o.last {
		is, ok := now[key]
		if !ok {
			is = absent
		}
		if is != was {
			if o.seen[key] == nil {
				o.seen[key] = []string{was}
			}
			o.seen[key] = append(o.seen[key], is)
		}
	}
	o.last = now
}

const absent = "absent"

// look reads what every key leads to, and asks the programs whether they see the
// same.
func (o *order) look() map[string]string {
	o.Helper()
	now := map[string]string{}
	owners := map[uint32]byte{}
	for _, f := range tables.Families {
		err := o.maps.ReadFrontends(f, func(e tables.FrontendEntry) {
			if layout.FrontendFlags(e.Value.Flags)&layout.FrontendClusterIP != 0 {
				// The last byte of a cluster IP tells whose it is.
				owner := e.Key.Addr.Addr(f).AsSlice()
				if other, ok := owners[e.Value.ServiceID]; ok && other != owner[len(owner)-1] {
					o.Fatalf("services %d and %d have the number %d", other, owner[len(owner)-1], e.Value.ServiceID)
				}
				owners[e.Value.ServiceID] = owner[len(owner)-1]
			}
			backends, err := o.maps.ReadBackends(f, e.Value.First, e.Value.Count)
			if err != nil {
				o.Fatal(err)
			}
			list := make([]string, 0, len(backends))
			for _, b := range backends {
				list = append(list, b.AddrPort(f).String())
			}
			o.prober.ask(e, list)
			slices.Sort(list)
			now[e.Key.String()] = fmt.Sprintf("service %d, %s: %s", e.Value.ServiceID, layout.FrontendFlags(e.Value.Flags), strings.Join(list, " "))
		})
		if err != nil {
			o.Fatal(err)
		}
		err = o.maps.ReadRoutes(f, func(e tables.RouteEntry) { now["route "+e.Key.Prefix().String()] = fmt.Sprint(e.Value) })
		if err != nil {
			o.Fatal(err)
		}
	}
	for key := range o.last {
		if _, ok := now[key]; !ok && o.last[key] != absent {
			o.prober.askAbsent(key)
		}
	}
	config, err := o.maps.ReadConfig()
	if err != nil {
		o.Fatal(err)
	}
	now["config"] = config.String()
	return now
}

func (o *order) idsAreUnique() {
	o.Helper()
	owners := map[uint32]tables.IDKey{}
	err := o.maps.ReadIDs(func(e tables.IDEntry) {
		if other, ok := owners[e.ID]; ok {
			o.Fatalf("number %d is of %x and of %x", e.ID, other, e.Key)
		}
		owners[e.ID] = e.Key
	})
	if err != nil {
		o.Fatal(err)
	}
}

// apply runs one change and checks what was seen on the way: each key led to
// what it led to before, and from some write on to what it leads to after.
func (o *order) apply(change func() dataplane.Result) (result dataplane.Result, crashed bool) {
	o.Helper()
	o.seen = map[string][]string{}
	func() {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(crash); !ok {
					panic(r)
				}
				crashed = true
			}
		}()
		result = change()
	}()
	for key, steps := range o.seen {
		if len(steps) > 2 {
			o.Fatalf("%s led elsewhere on the way:\n%s", key, strings.Join(steps, "\n"))
		}
	}
	return result, crashed
}

// settle checks that the kernel is what the cluster wants.
func (o *order) settle(result dataplane.Result) {
	o.Helper()
	if result.Retry {
		return // full: what there is room for is in order all the same
	}
	if got := o.diff(); len(got) != 0 {
		o.Fatalf("differences %q", got)
	}
	wanted := o.world.wanted()
	for _, f := range tables.Families {
		err := o.maps.ReadFrontends(f, func(e tables.FrontendEntry) {
			if layout.FrontendFlags(e.Value.Flags)&layout.FrontendClusterIP == 0 {
				return
			}
			key := fmt.Sprintf("%s/%d", e.Key.AddrPort(), e.Key.Proto)
			backends, err := o.maps.ReadBackends(f, e.Value.First, e.Value.Count)
			if err != nil {
				o.Fatal(err)
			}
			var got []string
			for _, b := range backends {
				got = append(got, b.AddrPort(f).String())
			}
			slices.Sort(got)
			if want, ok := wanted[key]; !ok || !slices.Equal(got, want) {
				o.Fatalf("%s leads to %v, wanted is %v", key, got, want)
			}
			delete(wanted, key)
		})
		if err != nil {
			o.Fatal(err)
		}
	}
	if len(wanted) != 0 {
		o.Fatalf("missing: %v", slices.Collect(maps.Keys(wanted)))
	}
}

// makeRoom grows the tables that were found full.
func (o *order) makeRoom() {
	o.Helper()
	o.plane.mu.Lock()
	full := o.plane.full
	o.plane.full = map[string]struct{}{}
	o.plane.mu.Unlock()
	sizes := map[string]uint32{}
	have := o.system.TableSizes()
	for name := range full {
		sizes[name] = 2 * have[name]
	}
	if len(sizes) == 0 {
		return
	}
	if !o.plane.growTo(sizes) {
		o.Fatalf("tables did not grow: %s", o.plane.growthFault)
	}
	o.prober.grown++
}

// TestWriteOrder changes a cluster at random and looks at the kernel after every
// single map write: the programs, given packets by BPF_PROG_TEST_RUN, answer as
// the maps say, and what the maps say of a key is what held before the batch or
// what holds after it. Some batches find a table full, which then grows; some
// end the agent after a write, and the next one must finish what it began.
func TestWriteOrder(t *testing.T) {
	netnstest.NeedsRoot(t, "it loads BPF programs")
	seeds, batches := uint64(4), 45
	if os.Getenv("MILLRACE_SOAK") == "1" {
		seeds, batches = 40, 400
	}
	var crashes, failed, grown, refused, passed int
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			o := newOrder(t, seed)
			o.run(batches)
			t.Logf("figure: %d writes, %d packets (%d to no service, %d refused), %d writes failed, %d crashes, %d growths",
				o.maps.writes, o.prober.packets, o.prober.passed, o.prober.refused, o.maps.failed, o.crashes, o.prober.grown)
			crashes, failed, grown = crashes+o.crashes, failed+o.maps.failed, grown+o.prober.grown
			refused, passed = refused+o.prober.refused, passed+o.prober.passed
		})
	}
	if min(crashes, failed, grown, refused, passed) == 0 {
		t.Errorf("not all was tried: %d crashes, %d failed writes, %d growths, %d refusals, %d packets to no service",
			crashes, failed, grown, refused, passed)
	}
}

func (o *order) run(batches int) {
	o.Helper()
	ctx := context.Background()
	for i := range batches {
		batch := o.world.step()
		o.store.Apply(batch)
		switch i % 3 {
		case 1:
			o.maps.failing = 10
		case 2:
			o.crashAt = 1 + o.random.IntN(20)
		}
		result, crashed := o.apply(func() dataplane.Result {
			return o.plane.Apply(ctx, dataplane.Change{Names: batch.Names(), InSync: true})
		})
		o.crashAt, o.maps.failing = 0, 0
		if crashed {
			result = o.recover()
			o.idsAreUnique()
		}
		for range 8 {
			if !result.Retry {
				break
			}
			o.makeRoom()
			result, _ = o.apply(func() dataplane.Result { return o.plane.Retry(ctx) })
		}
		if result.Retry {
			o.Fatalf("batch %d: still not programmed: %v", i, result.Errors)
		}
		o.settle(result)
		if i%16 == 15 {
			o.restartsClean()
		}
	}
}

// recover is what the next agent does: it reads the maps, then the log, unless
// that is lost, and then hears that it is in sync.
func (o *order) recover() dataplane.Result {
	o.Helper()
	ctx := context.Background()
	result, _ := o.apply(func() dataplane.Result {
		known := o.store.Names()
		if o.random.IntN(2) == 0 {
			all := o.store
			o.store = held.New()
			o.restart()
			o.plane.Apply(ctx, dataplane.Change{})
			b := held.NewBatch()
			for _, n := range known {
				entry, _ := all.Entry(n)
				b.Upsert(n, entry)
			}
			o.store.Apply(b)
			return o.plane.Apply(ctx, dataplane.Change{Names: known, InSync: true})
		}
		o.restart()
		o.plane.Apply(ctx, dataplane.Change{Names: known})
		return o.plane.Apply(ctx, dataplane.Change{InSync: true})
	})
	return result
}

// restartsClean restarts the agent with everything as it should be.
func (o *order) restartsClean() {
	o.Helper()
	before := o.maps.writes
	o.apply(func() dataplane.Result {
		o.restart()
		o.plane.Apply(context.Background(), dataplane.Change{Names: o.store.Names()})
		return o.plane.Apply(context.Background(), dataplane.Change{InSync: true})
	})
	if n := o.maps.writes - before; n != 0 {
		o.Fatalf("a restart with nothing changed wrote %d entries", n)
	}
}
