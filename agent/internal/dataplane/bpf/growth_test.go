// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/services"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

func TestGrowthPolicy(t *testing.T) {
	p := GrowthPolicy{Percent: 80, Limits: map[string]uint32{"a": 3000}}
	for _, c := range []struct {
		name string
		fill uint64
		size uint32
		full bool
		want uint32
	}{
		{"a", 799, 1000, false, 1000},
		{"a", 800, 1000, false, 2000},
		{"a", 2400, 1000, false, 3000}, // as often as it takes, but not beyond the limit
		{"a", 3000, 3000, true, 3000},
		{"a", 10, 1000, true, 2000}, // no room although there seems to be
		{"a", 5000, 4000, true, 4000},
		{"b", 1000, 1000, true, 1000},
	} {
		if got := p.size(c.name, c.fill, c.size, c.full); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
	p.Percent = 0
	if got := p.size("a", 1000, 1000, true); got != 1000 {
		t.Errorf("never is to be never: %d", got)
	}
}

// many are services with addresses and backends of their own.
func many(from, to int) []*dataplanev1.Resource {
	var list []*dataplanev1.Resource
	for i := from; i < to; i++ {
		s := fmt.Sprintf("s%d", i)
		list = append(list,
			&dataplanev1.Resource{Name: name(4, "many/"+s+"/0"), Version: 1, Content: &dataplanev1.Resource_BackendSlice{
				BackendSlice: &dataplanev1.BackendSlice{Namespace: "many", Name: s,
					PortSets: []*dataplanev1.PortSet{{Ports: []*dataplanev1.TargetPort{{Protocol: 6, Port: 8080}}}},
					Backends: []*dataplanev1.Backend{{Address: []byte{10, 2, byte(i >> 8), byte(i)}, Node: "n2", Ready: true, Serving: true}}}}},
			&dataplanev1.Resource{Name: name(5, "many/"+s), Version: 1, Content: &dataplanev1.Resource_Service{Service: &dataplanev1.Service{
				Namespace: "many", Name: s, ClusterIps: [][]byte{{10, 8, byte(i >> 8), byte(i)}}, BackendSlices: 1,
				Ports: []*dataplanev1.ServicePort{{Protocol: 6, Port: 80}}}}})
	}
	return list
}

// TestGrowth gives a node more services than its tables hold: they grow, up to
// their limits, and there the new ones are refused while the old ones stay.
func TestGrowth(t *testing.T) {
	n := newNode(t)
	n.plane.options.Growth = GrowthPolicy{Percent: 80, Limits: map[string]uint32{
		"frontends_v4": 2500, "backends_v4": 1 << 20, "ids": 1 << 20,
	}}
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var last dataplane.Result
	grown := map[string]int{}
	var wait sync.WaitGroup
	wait.Go(func() {
		n.plane.Grow(ctx, func(ctx context.Context) error {
			r := n.plane.Refresh(ctx)
			mu.Lock()
			defer mu.Unlock()
			last = r
			return nil
		}, func(names []string) {
			mu.Lock()
			defer mu.Unlock()
			for _, name := range names {
				grown[name]++
			}
		})
	})
	defer wait.Wait()
	defer cancel()
	// until waits for what the last refresh told.
	until := func(what string, cond func(dataplane.Result) bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			mu.Lock()
			done, errs := cond(last), last.Errors
			mu.Unlock()
			if done {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("not within 30 s: %s; %d errors: %v; %v", what, len(errs), errs[:min(3, len(errs))], n.system.TableSizes())
			}
		}
	}
	// More than there is room for, at once.
	if r := n.give(true, append(cluster1()[:3], many(0, 1500)...)...); len(r.Errors) == 0 {
		t.Fatal("there was room for 1500 services in tables of 1024")
	}
	until("everything finds room", func(r dataplane.Result) bool {
		return len(r.Report.GetProblems()) == 0 && len(r.Errors) == 0 && grown["frontends_v4"] > 0
	})
	if list := n.diff(); len(list) > 0 {
		t.Errorf("the kernel differs: %v", list[:min(3, len(list))])
	}
	sizes := n.system.TableSizes()
	if sizes["frontends_v4"] != 2048 || sizes["backends_v4"] < 2048 || sizes["ids"] != 262144 || sizes["frontends_v6"] != 1024 {
		t.Errorf("sizes %v", sizes)
	}

	// Beyond the limit.
	n.give(false, many(1500, 3000)...)
	until("the limit is reached", func(r dataplane.Result) bool {
		return n.system.TableSizes()["frontends_v4"] == 2500 && len(r.Errors) > 0 && n.plane.Fill()["frontends_v4"] == 2500
	})
	mu.Lock()
	errs := last.Errors
	mu.Unlock()
	if e := errs[0]; e.GetReason() != services.ReasonMapFull || !strings.HasPrefix(e.GetName().GetKey(), "many/s") ||
		!strings.Contains(e.GetMessage(), "--limit-frontends") {
		t.Errorf("%+v", e)
	}
	held := map[string]bool{}
	for _, f := range n.frontends() {
		held[f] = true
	}
	for i := range 1500 {
		if key := fmt.Sprintf("ClusterIP 10.8.%d.%d:80 10.2.%d.%d:8080@n2/false", i>>8, i&255, i>>8, i&255); !held[key] {
			t.Fatalf("%s is lost", key)
		}
	}

	// The next agent has what grew.
	cancel()
	wait.Wait()
	n.start()
	if n.kernel.Loaded() || n.system.TableSizes()["frontends_v4"] != 2500 {
		t.Errorf("programs loaded: %v; sizes %v", n.kernel.Loaded(), n.system.TableSizes())
	}
}

// brokenGrowth is a kernel in which tables cannot be exchanged.
type brokenGrowth struct{ Kernel }

func (brokenGrowth) PrepareGrowth(map[string]uint32) (Growth, error) {
	return nil, errors.New("cannot allocate memory")
}

// TestGrowthFails has no memory for larger tables: what there is stays, and the
// report says why.
func TestGrowthFails(t *testing.T) {
	n := newNode(t)
	n.plane.kernel = brokenGrowth{n.system}
	n.plane.options.Growth = GrowthPolicy{Percent: 80, Limits: map[string]uint32{"frontends_v4": 4096}}
	n.give(true, append(cluster1()[:3], many(0, 900)...)...)
	told := make(chan dataplane.Result, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wait sync.WaitGroup
	wait.Go(func() {
		n.plane.Grow(ctx, func(ctx context.Context) error {
			select {
			case told <- n.plane.Refresh(ctx):
			default:
			}
			return nil
		}, func([]string) { t.Error("it grew") })
	})
	defer wait.Wait()
	defer cancel()
	select {
	case r := <-told:
		if p := r.Report.GetProblems(); len(p) == 0 || !strings.Contains(strings.Join(p, " "), "cannot allocate memory") {
			t.Errorf("problems %q", p)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nothing is told")
	}
}

// TestGrowthNotPinned cannot pin the larger table: the report says so, it does
// not grow again, and the next attempt pins it.
func TestGrowthNotPinned(t *testing.T) {
	n := newNode(t)
	devices(t)
	n.give(true, cluster1()...)
	pin := filepath.Join(n.pins, "maps", "frontends_v4")
	if err := errors.Join(os.Remove(pin), os.MkdirAll(filepath.Join(pin, "in-the-way"), 0o700)); err != nil {
		t.Fatal(err)
	}
	n.plane.options.Growth = GrowthPolicy{Percent: 80, Limits: map[string]uint32{"frontends_v4": 1 << 20}}
	for _, sizes := range []map[string]uint32{{"frontends_v4": 2048}, nil} {
		if n.plane.growTo(sizes) {
			t.Error("a table was pinned in place of a directory")
		}
		if p := strings.Join(n.plane.Refresh(context.Background()).Report.GetProblems(), " "); !strings.Contains(p, "could not be pinned") {
			t.Errorf("problems %q", p)
		}
		if sizes := n.plane.toGrow(); len(sizes) > 0 {
			t.Errorf("it would grow again: %v", sizes)
		}
	}
	if err := os.RemoveAll(pin); err != nil {
		t.Fatal(err)
	}
	if !n.plane.growTo(nil) {
		t.Error("it was not pinned")
	}
	if p := n.plane.Refresh(context.Background()).Report.GetProblems(); len(p) > 0 {
		t.Errorf("problems %q", p)
	}
	n.restart()
	if size := n.system.TableSizes()["frontends_v4"]; size != 2048 {
		t.Errorf("frontends_v4 has room for %d", size)
	}
}
