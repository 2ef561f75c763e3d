// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// block puts a directory that is not empty in place of a pin, so that nothing
// can be pinned there, and returns what takes it away.
func block(t *testing.T, pin string) func() {
	t.Helper()
	if err := errors.Join(os.Remove(pin), os.MkdirAll(filepath.Join(pin, "in-the-way"), 0o700)); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.RemoveAll(pin); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGrowthNotPinned cannot pin a table that grew: it is in use all the same,
// and pinned when that is tried again.
func TestGrowthNotPinned(t *testing.T) {
	f := fill(t, Options{})
	before, sizes := content(t, f.d), doubled(f.d)
	unblock := block(t, f.d.mapPin("backends_v4"))
	g, err := f.d.PrepareGrowth(sizes)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Exchange(); !errors.Is(err, ErrPins) {
		t.Fatalf("error %v", err)
	}
	if have := f.d.TableSizes()["backends_v4"]; have != sizes["backends_v4"] {
		t.Errorf("backends_v4 has room for %d, not %d", have, sizes["backends_v4"])
	}
	if err := f.d.PinTables(); err == nil {
		t.Error("it was pinned in place of a directory")
	}
	unblock()
	if err := f.d.PinTables(); err != nil {
		t.Fatal(err)
	}
	f.check(before)
	f.reopen(Options{})
	f.check(before)
	if f.d.Loaded() {
		t.Error("what was pinned again is not adopted")
	}
}

// TestGrowthAfterFailures fails twice, the way back too, with attachments left
// on the programs of the first growth: the third brings all to its own and
// leaves nothing of the others.
func TestGrowthAfterFailures(t *testing.T) {
	f := fill(t, Options{})
	before := content(t, f.d)
	// No link: attachments cannot be listed while it is there.
	stray := filepath.Join(f.o.PinPath, "links", "tcx-1-ingress")
	for i := range 2 {
		g, err := f.d.PrepareGrowth(doubled(f.d))
		if err != nil {
			t.Fatal(err)
		}
		if err := pinAt(f.d.IDs, stray); err != nil {
			t.Fatal(err)
		}
		if err := g.Exchange(); err == nil || len(f.d.strays) == 0 {
			t.Fatalf("error %v, strays %v", err, f.d.strays)
		}
		if err := os.Remove(stray); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := f.d.exchangeLinks(f.d.byID(), g.s.programSet); err != nil {
				t.Fatal(err)
			}
		}
	}
	g, err := f.d.PrepareGrowth(doubled(f.d))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Exchange(); err != nil {
		t.Fatal(err)
	}
	f.check(before)
}

// TestFiltersUnknown cannot list the filters of a device, as no socket can be
// opened: they are not taken for none.
func TestFiltersUnknown(t *testing.T) {
	f := fill(t, Options{ForceClsact: true})
	s, err := f.d.newStage(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.abandon()
	a := Attachment{Kind: KindClsact, Ifindex: f.device, Hook: Ingress, Pin: f.d.devicePin(KindClsact, f.device, Ingress)}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	exchanged := f.d.exchangeClsact(a, f.d.byID(), s.programSet)
	_, attached := f.d.attachClsact(f.device, Ingress, deviceProgram(Uplink, Ingress), f.d.programs[deviceProgram(Uplink, Ingress)])
	removed := a.remove()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"exchange": exchanged, "attach": attached, "remove": removed} {
		if !errors.Is(err, unix.EMFILE) {
			t.Errorf("%s: error %v", what, err)
		}
	}
	if !exists(a.Pin) {
		t.Error("the pin is gone, and the filter is there")
	}
	if all, err := a.filters(); err != nil || len(all) != 1 {
		t.Errorf("%d filters, %v", len(all), err)
	}
}
