// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf/layout"
)

// ctRecord is a live record of its own, and its key.
func ctRecord(n int) (layout.CtKeyV4, layout.CtEntryV4) {
	client := netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(1000+n))
	key, lo, _ := layout.NewCtKey[layout.V4](client, netip.MustParseAddrPort("10.0.0.2:80"), layout.ProtoTCP)
	e := layout.CtEntryV4{Kind: layout.CtRecord, State: layout.CtEstablished, Nonce: uint32(n + 1), Main: key, Expires: 1 << 62}
	if lo {
		e.Flags |= layout.CtOrigIsLo
	}
	return key, e
}

// find looks a key up as programs do: by the slots, the current one first.
func find(t *testing.T, g *Generations, key layout.CtKeyV4) (e layout.CtEntryV4, slot uint32, ok bool) {
	t.Helper()
	current, draining := g.Maps()
	ids := map[uint32]*ebpf.Map{}
	for _, m := range []*ebpf.Map{current, draining} {
		if m == nil {
			continue
		}
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		ids[uint32(id)] = m
	}
	for _, slot := range []uint32{slotCurrent, slotDraining} {
		id, err := g.readSlot(slot)
		if err != nil {
			t.Fatal(err)
		}
		if id == 0 {
			continue
		}
		if ids[id] == nil {
			t.Fatalf("slot %d has a map that the agent does not know", slot)
		}
		if ids[id].Lookup(&key, &e) == nil {
			return e, slot, true
		}
	}
	return e, 0, false
}

func pins(t *testing.T, d *Dataplane, name string) string {
	t.Helper()
	found, err := filepath.Glob(d.mapPin(name) + "-*")
	if err != nil {
		t.Fatal(err)
	}
	for i := range found {
		found[i] = strings.TrimPrefix(found[i], d.mapPin(name))
	}
	return strings.Join(found, " ")
}

func drainAll(t *testing.T, d *Dataplane, g *Generations) {
	t.Helper()
	mover := d.NewMover(g)
	for range 1000 {
		moved, err := mover.Step(100)
		if err != nil {
			t.Fatal(err)
		}
		if moved.Drained {
			return
		}
	}
	t.Fatal("it does not get empty")
}

// TestGrowthEndsAnywhere ends a growth after each of its steps, as a killed agent
// does, and opens everything anew: the record is found all the time, and the map
// can grow, be drained, and grow again.
func TestGrowthEndsAnywhere(t *testing.T) {
	for n := range growthSteps + 1 {
		t.Run(fmt.Sprint(n), func(t *testing.T) { endGrowth(t, n) })
	}
}

const (
	growthSteps = 6
	// pinsSwitched is how many steps there are until the pins say that the new
	// map is to be the current one.
	pinsSwitched = 4
)

func endGrowth(t *testing.T, n int) {
	path := pinPath(t)
	d := open(t, Options{PinPath: path})
	all := func() []*Generations { return []*Generations{d.V4.Established, d.V4.Embryonic} }
	key, record := ctRecord(0)
	wantFound := func(g *Generations, when string) {
		t.Helper()
		if e, _, ok := find(t, g, key); !ok || e.Nonce != record.Nonce {
			t.Fatalf("%s, %s: the record is not found", g.Name(), when)
		}
	}
	size, last := d.V4.Established.Current().MaxEntries(), "nothing"
	for _, g := range all() {
		if err := g.Current().Put(&key, &record); err != nil {
			t.Fatal(err)
		}
		steps := g.growth(2 * size)
		if len(steps) != growthSteps {
			t.Fatalf("a growth has %d steps", len(steps))
		}
		for _, s := range steps[:n] {
			if err := s.do(); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			last = s.name
			wantFound(g, "after: "+last)
		}
	}
	d.Close()

	d = open(t, Options{PinPath: path})
	for _, g := range all() {
		wantFound(g, "reopened after: "+last)
		wantPins, wantSize := "-current", size
		if n >= pinsSwitched {
			wantPins, wantSize = "-current -draining", 2*size
		}
		if got := pins(t, d, g.Name()); got != wantPins || g.Current().MaxEntries() != wantSize {
			t.Errorf("%s, reopened after: %s: pins %q, %d entries; want %q, %d", g.Name(), last, got, g.Current().MaxEntries(), wantPins, wantSize)
		}
		if n >= pinsSwitched {
			if err := g.Grow(4 * size); !errors.Is(err, ErrMoving) {
				t.Errorf("%s: a second growth before the first one's end: %v", g.Name(), err)
			}
			drainAll(t, d, g)
		}
		for range 2 {
			size := g.Current().MaxEntries()
			if err := g.Grow(size); !errors.Is(err, ErrNotLarger) {
				t.Errorf("%s: growth to the size it has: %v", g.Name(), err)
			}
			if err := g.Grow(2 * size); err != nil {
				t.Fatal(err)
			}
			wantFound(g, "grown again")
			drainAll(t, d, g)
			if _, slot, ok := find(t, g, key); !ok || slot != slotCurrent || pins(t, d, g.Name()) != "-current" {
				t.Fatalf("%s, after the move: found %v in slot %d, pins %q", g.Name(), ok, slot, pins(t, d, g.Name()))
			}
		}
	}
}

// TestGrowthThatFails lets steps fail for want of a place for the pin: the map
// stays as it was.
func TestGrowthThatFails(t *testing.T) {
	d := open(t, Options{})
	g := d.V4.Established
	key, record := ctRecord(0)
	if err := g.Current().Put(&key, &record); err != nil {
		t.Fatal(err)
	}
	size := g.Current().MaxEntries()
	for _, suffix := range []string{pinNext, pinDraining} {
		// A directory in the way: a pin does not replace it.
		blocker := filepath.Join(d.mapPin(g.Name()+suffix), "inside")
		if err := os.MkdirAll(blocker, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := g.Grow(2 * size); err == nil || g.Draining() != nil || g.Current().MaxEntries() != size {
			t.Errorf("pin %s in the way: %v; draining %v, %d entries", suffix, err, g.Draining(), g.Current().MaxEntries())
		}
		if _, slot, ok := find(t, g, key); !ok || slot != slotCurrent {
			t.Errorf("pin %s in the way: the record is lost", suffix)
		}
		if id, err := g.readSlot(slotDraining); err != nil || id != 0 {
			t.Errorf("pin %s in the way: the draining slot has %d, %v", suffix, id, err)
		}
		if err := errors.Join(os.Remove(blocker), os.Remove(filepath.Dir(blocker))); err != nil {
			t.Fatal(err)
		}
		if got := pins(t, d, g.Name()); got != "-current" {
			t.Errorf("pin %s in the way: pins %q are left", suffix, got)
		}
	}
	if err := g.Grow(2 * size); err != nil {
		t.Fatal(err)
	}
	drainAll(t, d, g)
}

// TestMoveMerges writes into entries between copy and settlement, as a program
// does that found the old one before: nothing of it is lost, nor what programs
// wrote into the copy meanwhile.
func TestMoveMerges(t *testing.T) {
	d := open(t, Options{})
	if err := d.WriteConfig(layout.Config{Flags: layout.ConfigEnabled, TCPCloseTimeout: 10}); err != nil {
		t.Fatal(err)
	}
	const fin = 1
	for _, c := range []struct {
		name     string
		old, new func(*layout.CtEntryV4) // written into the old entry, into the copy
		want     func(*layout.CtEntryV4) bool
	}{
		{name: "nothing", want: func(e *layout.CtEntryV4) bool { return e.Expires == 1<<62 && e.State == layout.CtEstablished }},
		{name: "a later end", old: func(e *layout.CtEntryV4) { e.Expires++ },
			want: func(e *layout.CtEntryV4) bool { return e.Expires == 1<<62+1 }},
		{name: "a later end in the copy", new: func(e *layout.CtEntryV4) { e.Expires++ },
			want: func(e *layout.CtEntryV4) bool { return e.Expires == 1<<62+1 }},
		{name: "a FIN", old: func(e *layout.CtEntryV4) {
			e.State, e.Expires, e.TCPFlags[0], e.SeqExpected = layout.CtClosing, 1<<61, fin, 77
		}, want: func(e *layout.CtEntryV4) bool {
			return e.State == layout.CtClosing && e.Expires == 1<<61 && e.TCPFlags[0] == fin && e.SeqExpected == 77
		}},
		{name: "a FIN in the copy", new: func(e *layout.CtEntryV4) {
			e.State, e.Expires, e.TCPFlags[1] = layout.CtClosing, 1<<61, fin
		}, want: func(e *layout.CtEntryV4) bool {
			return e.State == layout.CtClosing && e.Expires == 1<<61 && e.TCPFlags[1] == fin
		}},
		{name: "a FIN in each", old: func(e *layout.CtEntryV4) { e.State, e.Expires, e.TCPFlags[0] = layout.CtClosing, 1<<61, fin },
			new: func(e *layout.CtEntryV4) { e.State, e.Expires, e.TCPFlags[1] = layout.CtClosing, 1<<61, fin },
			want: func(e *layout.CtEntryV4) bool {
				return e.State == layout.CtClosed && e.Expires < 1<<61 && e.TCPFlags == [2]uint8{fin, fin}
			}},
		{name: "confirmations", old: func(e *layout.CtEntryV4) { e.OutIfindex[0], e.OutKind[0] = 5, layout.DevicePod },
			new: func(e *layout.CtEntryV4) { e.OutIfindex[1], e.OutKind[1] = 6, layout.DeviceUplink },
			want: func(e *layout.CtEntryV4) bool {
				return e.OutIfindex == [2]uint32{5, 6} && e.OutKind == [2]layout.DeviceKind{layout.DevicePod, layout.DeviceUplink}
			}},
		{name: "its end", old: func(e *layout.CtEntryV4) { e.Expires = 0 },
			want: func(e *layout.CtEntryV4) bool { return e.Expires == 0 }},
		{name: "its end in the copy", new: func(e *layout.CtEntryV4) { e.Expires = 0 },
			want: func(e *layout.CtEntryV4) bool { return e.Expires == 0 }},
	} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/killed=%v", c.name, killed), func(t *testing.T) {
				g := d.V4.Established
				key, record := ctRecord(1)
				if err := g.Current().Put(&key, &record); err != nil {
					t.Fatal(err)
				}
				if err := g.Grow(g.Current().MaxEntries() + 16); err != nil {
					t.Fatal(err)
				}
				m := d.NewMover(g)
				var err error
				if m.prog, err = d.cloneProgram("conntrack_move"); err != nil {
					t.Fatal(err)
				}
				defer m.prog.Close()
				if done, stay, err := runMove(m, layout.CtMoveCopy, []layout.CtKeyV4{key}); err != nil || done != 1 || stay != 0 {
					t.Fatalf("copied %d, %d stay, %v", done, stay, err)
				}
				current, draining := g.Maps()
				for m, write := range map[*ebpf.Map]func(*layout.CtEntryV4){current: c.new, draining: c.old} {
					var e layout.CtEntryV4
					if err := m.Lookup(&key, &e); err != nil || e.Nonce != record.Nonce {
						t.Fatalf("copy and original: %v %v", &e, err)
					}
					if write == nil {
						continue
					}
					write(&e)
					if err := m.Put(&key, &e); err != nil {
						t.Fatal(err)
					}
				}
				if !killed {
					if done, stay, err := runMove(m, layout.CtMoveSettle, []layout.CtKeyV4{key}); err != nil || done != 1 || stay != 0 {
						t.Fatalf("settled %d, %d stay, %v", done, stay, err)
					}
				}
				drainAll(t, d, g) // copies again what is there, as an agent does after one that was killed
				var e layout.CtEntryV4
				if err := g.Current().Lookup(&key, &e); err != nil || !c.want(&e) {
					t.Errorf("%s expires %d tcp flags %v seq %d, %v", &e, e.Expires, e.TCPFlags, e.SeqExpected, err)
				}
			})
		}
	}
}

// TestMoveLeavesTheDead moves entries of which some are over, and aliases without
// a record: these go and are not in the way of others.
func TestMoveLeavesTheDead(t *testing.T) {
	d := open(t, Options{})
	g := d.V4.Established
	put := func(m *ebpf.Map, key layout.CtKeyV4, e layout.CtEntryV4) {
		t.Helper()
		if err := m.Put(&key, &e); err != nil {
			t.Fatal(err)
		}
	}
	expired, e1 := ctRecord(1)
	e1.Expires = 1
	put(g.Current(), expired, e1)
	live, e2 := ctRecord(2)
	put(g.Current(), live, e2)
	alias, _ := ctRecord(3)
	put(g.Current(), alias, layout.CtEntryV4{Kind: layout.CtAliasFrontend, Nonce: e2.Nonce, Main: live})
	orphan, _ := ctRecord(4)
	put(g.Current(), orphan, layout.CtEntryV4{Kind: layout.CtAliasFrontend, Nonce: e2.Nonce + 99, Main: live})
	replaced, e5 := ctRecord(5)
	put(g.Current(), replaced, e5)
	taken, e6 := ctRecord(6)
	put(g.Current(), taken, e6)
	if err := g.Grow(2 * g.Current().MaxEntries()); err != nil {
		t.Fatal(err)
	}
	// In the current map: a dead entry under one tuple, a live flow's under another.
	dead := e5
	dead.Nonce, dead.Expires = 50, 1
	put(g.Current(), replaced, dead)
	other := e6
	other.Nonce = 60
	put(g.Current(), taken, other)
	drainAll(t, d, g)
	for key, nonce := range map[layout.CtKeyV4]uint32{expired: 0, live: e2.Nonce, alias: e2.Nonce, orphan: 0, replaced: e5.Nonce, taken: 60} {
		var e layout.CtEntryV4
		if err := g.Current().Lookup(&key, &e); (err == nil) != (nonce != 0) || e.Nonce != nonce {
			t.Errorf("%s: %v %v, want nonce %d", key, &e, err, nonce)
		}
	}
}

// TestMoveWaitsForRoom drains into a map that is full: what finds no room stays
// and is found, and moves when there is some.
func TestMoveWaitsForRoom(t *testing.T) {
	d := open(t, Options{})
	g := d.V4.Established
	const n = 32
	for i := range n {
		key, e := ctRecord(i)
		if err := g.Current().Put(&key, &e); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Grow(g.Current().MaxEntries() + 1); err != nil {
		t.Fatal(err)
	}
	var others []layout.CtKeyV4
	for i := n; ; i++ {
		key, e := ctRecord(i)
		if g.Current().Put(&key, &e) != nil {
			break
		}
		others = append(others, key)
	}
	mover := d.NewMover(g)
	moved, err := mover.Step(n)
	if err != nil || moved.Moved != 0 || moved.Stay != n {
		t.Fatalf("into a full map: %+v, %v", moved, err)
	}
	for i := range n {
		if key, _ := ctRecord(i); !found(t, g, key) {
			t.Fatalf("record %d is lost", i)
		}
	}
	for _, key := range others[:n] {
		if err := g.Current().Delete(&key); err != nil {
			t.Fatal(err)
		}
	}
	drainAll(t, d, g)
	for i := range n {
		if key, _ := ctRecord(i); !found(t, g, key) {
			t.Errorf("record %d is lost", i)
		}
	}
}

func found(t *testing.T, g *Generations, key layout.CtKeyV4) bool {
	t.Helper()
	_, _, ok := find(t, g, key)
	return ok
}

// BenchmarkMove moves a large map's entries.
func BenchmarkMove(b *testing.B) {
	d := open(b, Options{MaxEstablished: 1 << 19})
	g := d.V6.Established
	const n = 1 << 18
	keys, entries := make([]layout.CtKeyV6, 0, n), make([]layout.CtEntryV6, 0, n)
	for i := range n {
		client := netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("fd00::%x", i>>15)), uint16(i&0x7fff))
		key, _, _ := layout.NewCtKey[layout.V6](client, netip.MustParseAddrPort("[fd09::1]:80"), layout.ProtoTCP)
		keys = append(keys, key)
		entries = append(entries, layout.CtEntryV6{Kind: layout.CtRecord, Nonce: 1, Main: key, Expires: 1 << 62})
	}
	if err := UpdateBatch(g.Current(), keys, entries); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := g.Grow(g.Current().MaxEntries() + 1024); err != nil {
			b.Fatal(err)
		}
		mover := d.NewMover(g)
		for {
			moved, err := mover.Step(1 << 14)
			if err != nil {
				b.Fatal(err)
			}
			if moved.Drained {
				break
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/entry")
}
