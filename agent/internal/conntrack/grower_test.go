// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// rig is a dataplane with small maps and a grower whose looks the test makes.
type rig struct {
	*testing.T
	kernel  *bpf.Dataplane
	table   *Table
	sweeper *Sweeper
	grower  *Grower
	pins    string
	policy  Policy
	grown   []string
	moved   int
}

func newRig(t *testing.T, p Policy) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it loads BPF programs")
	}
	fs := t.TempDir()
	if err := unix.Mount("millrace-test", fs, "bpf", 0, ""); err != nil {
		t.Fatalf("mount BPF filesystem: %v", err)
	}
	r := &rig{T: t, pins: filepath.Join(fs, "node"), policy: p}
	t.Cleanup(func() {
		r.kernel.Close()
		if err := errors.Join(bpf.RemovePins(r.pins), unix.Unmount(fs, 0)); err != nil {
			t.Error(err)
		}
	})
	r.start()
	return r
}

// start opens everything, as a starting agent does.
func (r *rig) start() {
	r.Helper()
	if r.kernel != nil {
		r.kernel.Close()
	}
	var err error
	r.kernel, err = bpf.Open(bpf.Options{PinPath: r.pins, MaxFrontends: 64, MaxBackends: 64, MaxRoutes: 64, MaxIDs: 64,
		MaxEstablished: 64, MaxEmbryonic: 1024})
	if err != nil {
		r.Fatal(err)
	}
	r.table = New(func(family int) Maps {
		f := r.kernel.Family(family)
		var m Maps
		m.Established, m.EstablishedDraining = f.Established.Maps()
		m.Embryonic, m.EmbryonicDraining = f.Embryonic.Maps()
		return m
	})
	r.sweeper = NewSweeper(r.table, Observer{Begin: func() map[uint32]struct{} { return nil }, End: func(PassStats) {},
		Failed: func(err error) { r.Error(err) }})
	r.grower = NewGrower(r.kernel, r.table, r.sweeper.Last, r.policy, GrowthEvents{
		Grown: func(name string) { r.grown = append(r.grown, name) },
		Moved: func(_ string, n int) { r.moved += n },
	}, zap.NewNop())
}

// flow adds a record of its own to the family's established map.
func (r *rig) flow(n int) error {
	key, e := recordOf(n)
	return r.kernel.V4.Established.Current().Update(&key, &e, ebpf.UpdateNoExist)
}

func recordOf(n int) (layout.CtKeyV4, layout.CtEntryV4) {
	key, _, _ := layout.NewCtKey[layout.V4](netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(1000+n)),
		netip.MustParseAddrPort("10.0.0.2:80"), layout.ProtoTCP)
	return key, layout.CtEntryV4{Kind: layout.CtRecord, State: layout.CtEstablished, Nonce: uint32(n + 1), Main: key,
		Expires: bpf.CoarseNow() + uint64(time.Hour)}
}

// settle looks until nothing moves.
func (r *rig) settle() {
	r.Helper()
	for range 1000 {
		r.grower.look()
		if !r.draining() {
			return
		}
	}
	r.Fatal("entries do not end moving")
}

func (r *rig) draining() bool {
	v4, v6 := r.table.maps(4), r.table.maps(6)
	return v4.draining() || v6.draining()
}

func (r *rig) want(size uint32, flows int) {
	r.Helper()
	if got := r.kernel.V4.Established.Current().MaxEntries(); got != size {
		r.Errorf("established_v4 has %d entries, want %d", got, size)
	}
	found := map[uint32]bool{}
	if err := r.table.ForEach(func(f Flow) error { found[uint32(f.Client.Port())] = true; return nil }); err != nil {
		r.Error(err)
	}
	for n := range flows {
		key, _ := recordOf(n)
		var e layout.CtEntryV4
		if err := r.kernel.V4.Established.Current().Lookup(&key, &e); err != nil || e.Nonce != uint32(n+1) {
			r.Errorf("flow %d: %v", n, err)
		}
	}
}

func limits(established uint32) map[string]uint32 {
	return map[string]uint32{"established_v4": established, "established_v6": established, "embryonic_v4": 4096, "embryonic_v6": 4096}
}

// TestGrowByFill adds flows; the map grows before it is full, up to its limit,
// and there the problem names it.
func TestGrowByFill(t *testing.T) {
	r := newRig(t, Policy{Percent: 80, Limits: limits(200)})
	flows := 0
	add := func(n int) {
		t.Helper()
		for ; flows < n; flows++ {
			if err := r.flow(flows); err != nil {
				t.Fatalf("flow %d: %v", flows, err)
			}
		}
		if err := r.sweeper.Pass(); err != nil {
			t.Fatal(err)
		}
		r.settle()
	}
	add(51)
	r.want(64, 51)
	add(52)
	r.want(128, 52)
	r.settle()
	r.want(128, 52) // not for the count of before
	add(103)
	r.want(200, 103)
	if len(r.grown) != 2 || r.grown[0] != "established_v4" || r.moved != 52+103 {
		t.Errorf("told of %v, %d entries moved", r.grown, r.moved)
	}
	if p := r.grower.Problems(); len(p) != 0 {
		t.Errorf("problems %q", p)
	}
	add(165)
	r.want(200, 165)
	if p := strings.Join(r.grower.Problems(), "\n"); !strings.Contains(p, "established_v4 has 165 of 200") || !strings.Contains(p, "--limit-established") {
		t.Errorf("problems %q", p)
	}
	// Asked for, it goes beyond its limit.
	if err := r.grower.Grow("established_v4", 500); err != nil {
		t.Fatal(err)
	}
	if err := r.grower.Grow("established_v4", 600); !errors.Is(err, bpf.ErrMoving) {
		t.Errorf("growth before the last one ended: %v", err)
	}
	r.settle()
	r.want(500, 165)
	for name, want := range map[string]error{"established_v5": ErrUnknownMap, "established_v4": bpf.ErrNotLarger} {
		if err := r.grower.Grow(name, 500); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if err := r.grower.Grow("embryonic_v6", 1<<31); err == nil {
		t.Error("the kernel gave a map of 2^31 entries")
	} else if r.kernel.V6.Embryonic.Current().MaxEntries() != 1024 {
		t.Error("the map that could not grow is another")
	}
}

// TestGrowByFlag starts with a larger size than the map has, and with one that a
// killed agent did not end growing to.
func TestGrowByFlag(t *testing.T) {
	r := newRig(t, Policy{Percent: 80, Limits: limits(4096)})
	for n := range 40 {
		if err := r.flow(n); err != nil {
			t.Fatal(err)
		}
	}
	r.policy.Sizes = map[string]uint32{"established_v4": 100, "embryonic_v6": 2048}
	r.start()
	r.grower.look()
	if !r.draining() {
		t.Fatal("no map grows")
	}
	r.start() // killed before anything moved
	r.settle()
	r.want(100, 40)
	if n := r.kernel.V6.Embryonic.Current().MaxEntries(); n != 2048 {
		t.Errorf("embryonic_v6 has %d entries", n)
	}
	r.start()
	r.settle()
	r.want(100, 40)
}

// TestPassOverMovingEntries exchanges maps in the middle of passes: nothing that
// must be met is passed over, and nothing counts as unused.
func TestPassOverMovingEntries(t *testing.T) {
	r := newRig(t, Policy{Percent: 80, Limits: limits(4096)})
	const n = 40
	for i := range n {
		if err := r.flow(i); err != nil {
			t.Fatal(err)
		}
	}
	met := map[layout.CtKeyV4]bool{}
	first := true
	removed, err := each(r.table, 4, func(k *layout.CtKeyV4, _ *layout.CtEntryV4) verdict {
		if first {
			// All move past this pass, which looks at what is the draining map now.
			first = false
			if err := r.grower.Grow("established_v4", 128); err != nil {
				t.Fatal(err)
			}
			r.settle()
		}
		met[*k] = true
		return remove
	})
	if err != nil || len(met) != n || removed != n {
		t.Errorf("met %d of %d flows, removed %d, %v", len(met), n, removed, err)
	}
	r.want(128, 0)
	var stats PassStats
	r.sweeper.observer.Begin = func() map[uint32]struct{} { return map[uint32]struct{}{7: {}} }
	r.sweeper.observer.End = func(s PassStats) { stats = s }
	exchange := true
	if err := r.sweeper.pass(func() bool { return true }); err != nil || !stats.Steady || len(stats.Unused) != 1 {
		t.Fatalf("a pass over maps that stay: %+v, %v", stats, err)
	}
	r.sweeper.observer.Begin = func() map[uint32]struct{} {
		if exchange {
			exchange = false
			if err := r.grower.Grow("established_v4", 256); err != nil {
				t.Fatal(err)
			}
		}
		return map[uint32]struct{}{7: {}}
	}
	if err := r.sweeper.pass(func() bool { return true }); err != nil || stats.Steady || len(stats.Unused) != 0 {
		t.Errorf("a pass during which a map was exchanged: %+v, %v", stats, err)
	}
}
