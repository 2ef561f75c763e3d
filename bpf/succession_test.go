// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/millrace-project/millrace/bpf/layout"
)

// otherObjects have other layouts of almost all maps: a field more at the
// beginning, see testdata/otherlayout.sh.
func otherObjects(t testing.TB) []object { return packedObjects(t, "testdata/otherlayout") }

// otherConversions are from those to the present.
func otherConversions(t testing.TB) []conversion {
	t.Helper()
	other, err := describeLayouts(otherObjects(t))
	if err != nil {
		t.Fatal(err)
	}
	without := func(from, n int) func(k, v []byte) ([]byte, []byte) {
		return func(k, v []byte) ([]byte, []byte) { return k, slices.Delete(slices.Clone(v), from, from+n) }
	}
	var list []conversion
	for base, convert := range map[string]func(k, v []byte) ([]byte, []byte){
		"frontends": without(0, 8), "backends": without(0, 4), "routes": without(0, 4),
		"embryonic": without(0, 16), "established": without(0, 16),
		"connected": without(16, 8), "spilled": without(0, 8),
	} {
		for _, suffix := range []string{"_v4", "_v6"} {
			list = append(list, conversion{maps: []string{base + suffix}, from: other.digest(base + suffix), convert: convert})
		}
	}
	return append(list, conversion{maps: []string{"config"}, from: other.digest("config"), convert: without(0, 8)})
}

// TestLayoutsAreConverted fails when a map's layout is not a release's and there
// is no conversion from that.
func TestLayoutsAreConverted(t *testing.T) {
	now, err := describeLayouts(objects)
	if err != nil {
		t.Fatal(err)
	}
	d := &Dataplane{layouts: now, conversions: conversions}
	for _, dir := range releases(t) {
		text, err := os.ReadFile(filepath.Join(dir, "layouts.txt"))
		if err != nil {
			t.Fatal(err)
		}
		then, err := ParseLayouts(string(text))
		if err != nil {
			t.Fatal(err)
		}
		for name := range then {
			if _, ok := now[name]; !ok || slices.Contains([]string{"sockets_v4", "sockets_v6", "fragments_v4", "fragments_v6", "counters"}, name) {
				continue // what these hold is not carried over, see docs/reliability.md
			}
			if d.converter(name, then.digest(name)) == nil {
				t.Errorf("%s of %s has another layout than now, digest %s, and there is no conversion (see conversions):\n%s\n%s",
					name, filepath.Base(dir), then.digest(name), then[name], now[name])
			}
		}
	}
	// That it would be noticed: no conversion from a layout that is none's.
	other, err := describeLayouts(otherObjects(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"frontends_v4", "established_v6", "connected_v4"} {
		if other.digest(name) == now.digest(name) || d.converter(name, other.digest(name)) != nil {
			t.Errorf("another layout of %s goes unnoticed", name)
		}
	}
}

// forgeLayout makes a record say that maps have other layouts.
func forgeLayout(t *testing.T, record string, names ...string) {
	t.Helper()
	text, err := os.Readlink(record)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(names, "objects") {
		text = regexp.MustCompile(` `+name+`=\S+`).ReplaceAllString(text, " "+name+"=0")
	}
	if err := errors.Join(os.Remove(record), os.Symlink(text, record)); err != nil {
		t.Fatal(err)
	}
}

// TestSuccession lets the present programs take over from those of another
// release while traffic flows.
func TestSuccession(t *testing.T) {
	previous := releases(t)[len(releases(t))-1]
	for _, c := range []struct {
		name        string
		before      []object
		conversions []conversion
		sockets     bool
		clsact      bool
	}{
		{"the release before, packets", packedObjects(t, previous), conversions, false, false},
		{"the release before, packets, clsact", packedObjects(t, previous), conversions, false, true},
		{"the release before, sockets", packedObjects(t, previous), conversions, true, false},
		{"other layouts, packets", otherObjects(t), otherConversions(t), false, false},
		{"other layouts, packets, clsact", otherObjects(t), otherConversions(t), false, true},
		{"other layouts, sockets", otherObjects(t), otherConversions(t), true, false},
		{"unknown layouts, packets", otherObjects(t), nil, false, false},
		{"unknown layouts of some, packets", objects, nil, false, false},
		{"unknown layouts of some, sockets", objects, nil, true, false},
		{"unknown layouts, sockets", otherObjects(t), nil, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLive(t, c.sockets)
			o := testSizes(Options{PinPath: pinPath(t), ForceClsact: c.clsact, MaxFrontends: 4096, MaxBackends: 8192})
			o.MaxEmbryonic, o.MaxEstablished = 65536, 65536
			d, err := openRelease(o, c.before, nil)
			if err != nil {
				t.Fatal(err)
			}
			l.program(d)
			l.attach(d)
			if c.name[:5] == "the r" { // it wrote no record
				if err := os.Remove(d.mapPin(layoutsRecord)); err != nil {
					t.Fatal(err)
				}
			}
			some := strings.Contains(c.name, "of some")
			if some {
				forgeLayout(t, d.mapPin(layoutsRecord), "config", "frontends_v4", "frontends_v6")
			}
			l.start()
			l.more(200)
			d.Close()

			d, err = openRelease(o, objects, c.conversions)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { d.Close() }()
			changed := strings.Contains(c.name, "layouts")
			if (d.past != nil) != changed {
				t.Fatalf("there is a past: %v", d.past != nil)
			}
			if _, blank := d.Past(); changed && (len(blank) > 0) != (c.conversions == nil) {
				t.Errorf("blank tables: %v", blank)
			}
			if changed && c.conversions == nil {
				l.program(d) // from the log
			}
			l.attach(d)
			l.more(200)
			s, err := d.Succeed(new(sync.Mutex))
			if err != nil {
				t.Fatal(err)
			}
			l.more(200)
			t.Logf("%+v", s)
			if changed && c.conversions != nil && s.Flows == 0 && !c.sockets {
				t.Error("no flow was converted")
			}
			if changed && c.conversions != nil && s.Sockets == 0 && c.sockets {
				t.Error("no socket was converted")
			}
			if some {
				// Flows and sockets are in maps that both share.
				if !s.Done {
					t.Errorf("%+v", s)
				}
			} else if c.conversions == nil && changed {
				if s.Done || !slices.Contains(s.Waiting, "established_v4") {
					t.Errorf("what cannot be converted has ended: %+v", s)
				}
			} else if changed {
				// All that waits is what the past knows of unconnected sockets.
				if slices.ContainsFunc(s.Waiting, func(name string) bool { return !strings.HasPrefix(name, "sockets_") }) {
					t.Errorf("waiting: %v", s.Waiting)
				}
				d.past.since -= answersLast
				if s, err = d.Succeed(new(sync.Mutex)); err != nil || !s.Done {
					t.Fatalf("%+v, %v", s, err)
				}
				if _, err := os.Lstat(pastPath(o.PinPath)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the past is still there: %v", err)
				}
			}
			l.more(400)
			l.peers()

			// The next agent finds everything in place.
			d.Close()
			if d, err = openRelease(o, objects, c.conversions); err != nil {
				t.Fatal(err)
			}
			if d.Loaded() {
				t.Error("programs were loaded again")
			}
			l.attach(d)
			l.more(200)
			l.peers()
			l.stop()
			l.check()
			t.Logf("%d requests", l.requests)
		})
	}
}

// TestSuccessionCutShort ends agents in the midst of it: the next one goes on.
func TestSuccessionCutShort(t *testing.T) {
	for _, sockets := range []bool{false, true} {
		t.Run(fmt.Sprintf("sockets %v", sockets), func(t *testing.T) {
			l := newLive(t, sockets)
			o := testSizes(Options{PinPath: pinPath(t), MaxFrontends: 4096, MaxBackends: 8192})
			o.MaxEmbryonic, o.MaxEstablished = 65536, 65536
			d, err := openRelease(o, otherObjects(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			l.program(d)
			l.attach(d)
			l.start()
			l.more(300)
			d.Close()

			move := func(names ...string) {
				t.Helper()
				for _, name := range names {
					if err := os.Rename(filepath.Join(o.PinPath, name), filepath.Join(o.PinPath, retiringName, name)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := os.Mkdir(filepath.Join(o.PinPath, retiringName), 0o700); err != nil {
				t.Fatal(err)
			}
			move("links")
			// The lock makes the directories that an agent finds missing.
			if err := makePinDirs(o.PinPath); err != nil {
				t.Fatal(err)
			}
			steps := []func(*Dataplane){
				func(*Dataplane) {},
				func(d *Dataplane) { // maps are made, programs are not pinned
					for _, dir := range []string{"programs"} {
						if err := os.RemoveAll(filepath.Join(o.PinPath, dir)); err != nil {
							t.Fatal(err)
						}
					}
				},
				func(d *Dataplane) { // a map is missing
					if err := os.Remove(d.mapPin("backends_v4")); err != nil {
						t.Fatal(err)
					}
				},
				func(d *Dataplane) { // one device is attached
					if _, err := d.AttachDevice(l.client.device, Pod); err != nil {
						t.Fatal(err)
					}
				},
				func(d *Dataplane) { l.attach(d) },
				func(d *Dataplane) { // some tables are empty
					for _, name := range []string{"frontends_v4", "routes_v6"} {
						if err := d.emptyPast(name); err != nil {
							t.Fatal(err)
						}
					}
				},
				func(d *Dataplane) {
					if _, err := d.Succeed(new(sync.Mutex)); err != nil {
						t.Fatal(err)
					}
				},
				func(d *Dataplane) {
					d.past.since -= answersLast
					if s, err := d.Succeed(new(sync.Mutex)); err != nil || !s.Done {
						t.Fatalf("%+v, %v", s, err)
					}
				},
				func(*Dataplane) {},
			}
			for i, step := range steps {
				if d, err = openRelease(o, objects, otherConversions(t)); err != nil {
					t.Fatalf("start %d: %v", i, err)
				}
				if i >= 4 {
					l.attach(d)
				}
				step(d)
				l.more(200)
				d.Close()
			}
			l.stop()
			l.check()
			t.Logf("%d requests", l.requests)
		})
	}
}

// TestSourcePortsOfGenerations has no port that two generations side by side use.
func TestSourcePortsOfGenerations(t *testing.T) {
	for turn := range 2 {
		before, after := &Dataplane{turn: turn}, &Dataplane{turn: 1 - turn, behind: true}
		for _, r := range [][2]uint16{{20000, 29999}, {1024, 1063}, {1, 65535}} {
			first, last := before.SNATPorts(r[0], r[1])
			next, end := after.SNATPorts(r[0], r[1])
			if first > last || next > end || first < r[0] || last > r[1] || next < r[0] || end > r[1] {
				t.Errorf("%v: %d-%d, then %d-%d", r, first, last, next, end)
			}
			if next <= last && first <= end {
				t.Errorf("%v: %d-%d and %d-%d share ports", r, first, last, next, end)
			}
			after.behind = false
			if all, to := after.SNATPorts(r[0], r[1]); next < all || end > to {
				t.Errorf("%v: ports of %d-%d are not of %d-%d", r, next, end, all, to)
			}
			after.behind = true
		}
	}
}

// TestAffinityOutlivesLayouts changes the layouts of other maps under clients
// that keep a backend: both generations use one map of them.
func TestAffinityOutlivesLayouts(t *testing.T) {
	needKernel(t)
	key := layout.NewSocketAffinityKey[layout.V4](9, 7)
	want := layout.AffinityV4{BackendAddr: layout.V4{10, 1, 0, 7}, BackendPort: layout.Port(80), Used: 5}
	o := testSizes(Options{PinPath: pinPath(t)})
	d, err := openRelease(o, otherObjects(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	err = d.V4.Affinity.Put(key, want)
	d.Close()
	if err != nil {
		t.Fatal(err)
	}
	if d, err = openRelease(o, objects, otherConversions(t)); err != nil {
		t.Fatal(err)
	}
	defer func() { d.Close() }()
	var got layout.AffinityV4
	if err := d.V4.Affinity.Lookup(key, &got); err != nil || got != want || d.past == nil {
		t.Errorf("got %v, want %v; there is a past: %t; %v", got, want, d.past != nil, err)
	}
}
