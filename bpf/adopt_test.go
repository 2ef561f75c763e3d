// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// programOf is the id of the program that a pinned link runs.
func programOf(t testing.TB, pin string) ebpf.ProgramID {
	t.Helper()
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.Program
}

// TestProgramsAreAdopted opens the same dataplane again: the programs are the
// pinned ones, and links go on with what they run.
func TestProgramsAreAdopted(t *testing.T) {
	for name, o := range map[string]Options{"tcx": {}, "clsact": {ForceClsact: true}} {
		t.Run(name, func(t *testing.T) {
			o.PinPath = pinPath(t)
			device, cgroup := veth(t, "adopt"), testCgroup(t)
			start := time.Now()
			d := open(t, o)
			loading := time.Since(start)
			if !d.Loaded() {
				t.Error("adopted programs of nobody")
			}
			attach := func(d *Dataplane) []Attachment {
				t.Helper()
				a, err := d.AttachCgroup(cgroup)
				if err != nil {
					t.Fatal(err)
				}
				b, err := d.AttachDevice(device, Pod)
				if err != nil {
					t.Fatal(err)
				}
				return append(a, b...)
			}
			attach(d)
			before := d.ids
			d.Close()

			start = time.Now()
			d = open(t, o)
			t.Logf("loading took %v, adopting %v", loading, time.Since(start))
			if d.Loaded() {
				t.Error("the programs were loaded anew")
			}
			for name, id := range d.ids {
				if before[name] != id {
					t.Errorf("%s is program %d, was %d", name, id, before[name])
				}
			}
			for _, a := range attach(d) {
				if !a.Adopted {
					t.Errorf("%s was made anew", a)
				}
				if a.Kind != KindClsact && programOf(t, a.Pin) != d.ids[a.Program] {
					t.Errorf("%s runs program %d, not %d", a, programOf(t, a.Pin), d.ids[a.Program])
				}
			}
		})
	}
}

// TestProgramsInDoubtAreLoaded spoils what the record speaks of.
func TestProgramsInDoubtAreLoaded(t *testing.T) {
	remove := func(parts ...string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.Remove(filepath.Join(append([]string{path}, parts...)...)); err != nil {
				t.Fatal(err)
			}
		}
	}
	rewrite := func(t *testing.T, path string, change func([]byte)) {
		record := filepath.Join(path, "programs", programsRecord)
		text, err := os.Readlink(record)
		if err != nil {
			t.Fatal(err)
		}
		b := []byte(text)
		change(b)
		if err := os.Remove(record); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(string(b), record); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		spoil func(*testing.T, string)
		again Options
	}{
		"a pin is gone":      {spoil: remove("programs", "sock_connect4")},
		"the record is gone": {spoil: remove("programs", programsRecord)},
		"a map is another":   {spoil: remove("maps", "counters")},
		"other variants":     {again: Options{NoSetRetval: true}},
		"another digest":     {spoil: func(t *testing.T, path string) { rewrite(t, path, func(b []byte) { b[5] ^= 1 }) }},
		"another form":       {spoil: func(t *testing.T, path string) { rewrite(t, path, func(b []byte) { b[0]++ }) }},
		"a pin of another one's": {spoil: func(t *testing.T, path string) {
			pin := filepath.Join(path, "programs", "sock_connect4")
			if err := os.Remove(pin); err != nil {
				t.Fatal(err)
			}
			p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect,
				License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if err := p.Pin(pin); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{PinPath: pinPath(t), SocketsOnly: true}
			open(t, o).Close()
			if c.spoil != nil {
				c.spoil(t, o.PinPath)
			}
			o.NoSetRetval = c.again.NoSetRetval
			d := open(t, o)
			if !d.Loaded() {
				t.Error("the programs were adopted")
			}
			d.Close()
			if d = open(t, o); d.Loaded() {
				t.Error("what was loaded then is not adopted")
			}
		})
	}
}

// TestOtherObjectsAreLoaded has one byte of one object differ.
func TestOtherObjectsAreLoaded(t *testing.T) {
	o := testSizes(Options{PinPath: pinPath(t), SocketsOnly: true})
	open(t, o).Close()
	other := slices.Clone(objects)
	other[0].elf = append(slices.Clone(other[0].elf), 0)
	d, err := openRelease(o, other, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if !d.Loaded() {
		t.Error("programs of other objects were adopted")
	}
}
