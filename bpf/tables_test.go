// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf/layout"
)

// filled is a dataplane with something in every table, attached to a cgroup and
// to a device.
type filled struct {
	testing.TB
	o      Options
	cgroup string
	device int
	d      *Dataplane
}

func fill(t *testing.T, o Options) *filled {
	t.Helper()
	o.PinPath = pinPath(t)
	f := &filled{TB: t, o: o, cgroup: testCgroup(t), device: veth(t, "grow")}
	f.d = open(t, o)
	f.attach()
	for i := range 100 {
		addr4, addr6 := netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}), netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)})
		put := func(m *ebpf.Map, key, value any) {
			t.Helper()
			if err := m.Put(key, value); err != nil {
				t.Fatal(err)
			}
		}
		k4, _ := layout.NewFrontendKey[layout.V4](netip.AddrPortFrom(addr4, 80), 6)
		k6, _ := layout.NewFrontendKey[layout.V6](netip.AddrPortFrom(addr6, 80), 6)
		put(f.d.V4.Frontends, &k4, &layout.Frontend{ServiceID: uint32(i + 1)})
		put(f.d.V6.Frontends, &k6, &layout.Frontend{ServiceID: uint32(i + 1)})
		a4, _ := layout.FromAddr[layout.V4](addr4)
		a6, _ := layout.FromAddr[layout.V6](addr6)
		put(f.d.V4.Routes, &layout.RouteKey[layout.V4]{PrefixLen: 32, Addr: a4}, &layout.Route{Ifindex: uint32(i)})
		put(f.d.V6.Routes, &layout.RouteKey[layout.V6]{PrefixLen: 128, Addr: a6}, &layout.Route{Ifindex: uint32(i)})
		key := layout.NewIDKey("test", fmt.Sprint(i))
		put(f.d.IDs, &key, uint32(i))
		// To the end of the array, which is longer than a page.
		at := f.d.V4.Backends.MaxEntries() / 100 * uint32(i)
		put(f.d.V4.Backends, at, &layout.Backend[layout.V4]{Addr: a4})
		put(f.d.V6.Backends, at, &layout.Backend[layout.V6]{Addr: a6})
	}
	return f
}

func (f *filled) attach() {
	f.Helper()
	if _, err := f.d.AttachCgroup(f.cgroup); err != nil {
		f.Fatal(err)
	}
	if _, err := f.d.AttachDevice(f.device, Uplink); err != nil {
		f.Fatal(err)
	}
}

// content reads all tables; of arrays what is not zero.
func content(t testing.TB, d *Dataplane) map[string]map[string]string {
	t.Helper()
	all := map[string]map[string]string{}
	for _, name := range tables {
		all[name] = map[string]string{}
		m := d.maps[name]
		err := eachRaw(m, func(r rawElements) error {
			for i := range r.len() {
				if value := string(r.value(i)); m.Type() != ebpf.Array || value != string(make([]byte, len(value))) {
					all[name][string(r.key(i))] = value
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// check finds every table with what was put in, every attachment running the
// dataplane's programs, and nothing left over.
func (f *filled) check(want map[string]map[string]string) {
	f.Helper()
	for name, have := range content(f, f.d) {
		if fmt.Sprint(have) != fmt.Sprint(want[name]) {
			f.Errorf("%s holds %d elements, not the %d of before", name, len(have), len(want[name]))
		}
	}
	all, err := f.d.Attachments()
	if err != nil {
		f.Fatal(err)
	}
	if len(all) != len(cgroupPrograms)+2 {
		f.Errorf("%d attachments", len(all))
	}
	known := f.d.byID()
	for _, a := range all {
		var id ebpf.ProgramID
		if a.Kind != KindClsact {
			id = programOf(f, a.Pin)
		} else if filter, err := a.filter(); err != nil {
			f.Errorf("%s: %v", a, err)
		} else if filter != nil {
			id = ebpf.ProgramID(filter.Id)
		}
		if known[id] == "" {
			f.Errorf("%s runs program %d, which is none of the dataplane's", a, id)
		}
		if a.Kind != KindCgroup && known[id] != deviceProgram(Uplink, a.Hook) {
			f.Errorf("%s runs %s", a, known[id])
		}
	}
	if left := stages(f.o.PinPath); len(left) != 0 {
		f.Errorf("left over: %v", left)
	}
	for _, name := range tables {
		m, err := ebpf.LoadPinnedMap(filepath.Join(f.o.PinPath, "maps", name), nil)
		if err != nil {
			f.Fatal(err)
		}
		a, _ := m.Info()
		b, _ := f.d.maps[name].Info()
		idA, _ := a.ID()
		idB, _ := b.ID()
		if idA != idB {
			f.Errorf("%s: map %d is pinned, %d is used", name, idA, idB)
		}
		m.Close()
	}
}

func (f *filled) reopen(o Options) {
	f.Helper()
	f.d.Close()
	o.PinPath = f.o.PinPath
	f.d = open(f, o)
}

func doubled(d *Dataplane) map[string]uint32 {
	sizes := d.TableSizes()
	for name := range sizes {
		sizes[name] *= 2
	}
	return sizes
}

// TestTablesGrow replaces all tables of an attached dataplane.
func TestTablesGrow(t *testing.T) {
	for name, o := range map[string]Options{"tcx": {}, "clsact": {ForceClsact: true}} {
		t.Run(name, func(t *testing.T) {
			f := fill(t, o)
			before, sizes := content(t, f.d), doubled(f.d)
			old := f.d.Tables()
			g, err := f.d.PrepareGrowth(sizes)
			if err != nil {
				t.Fatal(err)
			}
			// Made between the two steps: it is to follow.
			key := layout.NewIDKey("test", "late")
			if err := f.d.IDs.Put(&key, uint32(7)); err != nil {
				t.Fatal(err)
			}
			before["ids"][string(key.Digest[:])] = string([]byte{7, 0, 0, 0})
			if err := g.Exchange(); err != nil {
				t.Fatal(err)
			}
			f.check(before)
			if old.V4.Frontends == f.d.Tables().V4.Frontends || old.V4.Frontends.MaxEntries() != sizes["frontends_v4"]/2 {
				t.Error("the table that was replaced is not what it was")
			}
			if err := f.d.V4.Backends.Put(sizes["backends_v4"]-1, &layout.Backend[layout.V4]{Port: layout.Port(1)}); err != nil {
				t.Error(err)
			}
			if err := f.d.V4.Backends.Put(sizes["backends_v4"]-1, &layout.Backend[layout.V4]{}); err != nil {
				t.Error(err)
			}
			f.attach() // finds all of it in place
			f.reopen(o)
			f.check(before)
			if f.d.Loaded() {
				t.Error("what grew is not adopted")
			}
			for name, size := range f.d.TableSizes() {
				if size != sizes[name] {
					t.Errorf("%s has room for %d, not %d", name, size, sizes[name])
				}
			}
		})
	}
}

// TestTablesGrowAtStart asks for larger maps than there are.
func TestTablesGrowAtStart(t *testing.T) {
	f := fill(t, Options{})
	before := content(t, f.d)
	f.reopen(Options{MaxFrontends: 10000, MaxBackends: 20000})
	f.check(before)
	for _, a := range f.d.Adopted() {
		if a.MaxEntries < a.Wanted {
			t.Errorf("%+v", a)
		}
	}
	f.reopen(Options{}) // smaller: they stay
	f.check(before)
	if sizes := f.d.TableSizes(); sizes["frontends_v6"] != 10000 || sizes["backends_v4"] != 20000 {
		t.Errorf("sizes %v", sizes)
	}
	if f.d.Loaded() {
		t.Error("programs were loaded for nothing")
	}
}

// TestGrowthCannotBegin asks for what cannot be: nothing changes.
func TestGrowthCannotBegin(t *testing.T) {
	f := fill(t, Options{})
	before := content(t, f.d)
	for _, sizes := range []map[string]uint32{
		{"nothing": 1 << 20}, {"counters": 1 << 20}, {"ids": 10},
		{"backends_v6": 1<<32 - 1}, // 80 GiB
	} {
		if _, err := f.d.PrepareGrowth(sizes); err == nil {
			t.Errorf("%v: no error", sizes)
		}
		f.check(before)
	}
	f.reopen(Options{MaxFrontends: 4096, MaxBackends: 1<<32 - 1})
	f.check(before)
}

// TestGrowthCutShort ends it after each of its steps, as a killed agent does, and
// opens anew: with the sizes of before, and with others.
func TestGrowthCutShort(t *testing.T) {
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// Half of the links are out of sight while the others are exchanged.
	hide := func(t *testing.T, f *filled, back bool) {
		links, err := os.ReadDir(filepath.Join(f.o.PinPath, "links"))
		must(t, err)
		for i, l := range links {
			name := filepath.Join(f.o.PinPath, "links", l.Name())
			if hidden := l.Name()[len(l.Name())-1] == '~'; hidden && back {
				must(t, os.Rename(name, name[:len(name)-1]))
			} else if !back && i%2 == 0 {
				must(t, os.Rename(name, name+"~"))
			}
		}
	}
	steps := []struct {
		name string
		do   func(*testing.T, *filled, *stage)
	}{
		{"prepared", func(*testing.T, *filled, *stage) {}},
		{"copied", func(t *testing.T, f *filled, s *stage) { must(t, s.copyTables()) }},
		{"half of the attachments exchanged", func(t *testing.T, f *filled, s *stage) {
			hide(t, f, false)
			must(t, f.d.exchangeLinks(f.d.byID(), s.programSet))
			hide(t, f, true)
		}},
		{"all exchanged", func(t *testing.T, f *filled, s *stage) { must(t, f.d.exchangeLinks(f.d.byID(), s.programSet)) }},
		{"a map moved", func(t *testing.T, f *filled, s *stage) {
			must(t, os.Rename(filepath.Join(s.path, "maps", "backends_v4"), f.d.mapPin("backends_v4")))
		}},
		{"all maps moved", func(t *testing.T, f *filled, s *stage) {
			for name := range s.fresh {
				if name != "backends_v4" {
					must(t, os.Rename(filepath.Join(s.path, "maps", name), f.d.mapPin(name)))
				}
			}
		}},
		{"a program moved", func(t *testing.T, f *filled, s *stage) {
			must(t, os.Remove(filepath.Join(f.d.programsDir(), programsRecord)))
			must(t, os.Rename(filepath.Join(s.programsDir(), "sock_connect4"), filepath.Join(f.d.programsDir(), "sock_connect4")))
		}},
	}
	for name, o := range map[string]Options{"tcx": {}, "clsact": {ForceClsact: true}} {
		for last := range steps {
			for again, sizes := range map[string]Options{"same": {}, "larger": {MaxFrontends: 50000, MaxBackends: 60000}} {
				if half := steps[last].name == "half of the attachments exchanged"; (o.ForceClsact || again == "larger") && !half {
					continue // the rest of the way is the same
				}
				t.Run(fmt.Sprintf("%s/%s/%s", name, steps[last].name, again), func(t *testing.T) {
					f := fill(t, o)
					before := content(t, f.d)
					s, err := f.d.newStage(doubled(f.d))
					must(t, err)
					for _, step := range steps[:last+1] {
						step.do(t, f, s)
					}
					for _, p := range s.programs {
						p.Close()
					}
					for _, m := range s.fresh {
						m.Close()
					}
					sizes.ForceClsact = o.ForceClsact
					f.reopen(sizes)
					f.check(before)
				})
			}
		}
	}
}
