// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// TestProbeAsksForEverything compares what is probed with what the objects use:
// a helper or a type of map that is new in a program must be probed too, or a
// kernel without it is found out by its verifier.
func TestProbeAsksForEverything(t *testing.T) {
	optional := []asm.BuiltinFunc{asm.FnSetRetval, asm.FnSkcToMptcpSock}
	used := map[ebpf.ProgramType]map[asm.BuiltinFunc]bool{}
	for _, o := range objects {
		spec, err := o.spec()
		if err != nil {
			t.Fatal(err)
		}
		for name, p := range spec.Programs {
			if used[p.Type] == nil {
				used[p.Type] = map[asm.BuiltinFunc]bool{}
			}
			for _, i := range p.Instructions {
				if i.IsKfuncCall() {
					t.Errorf("%s calls a kernel function that is not probed: %v", name, i)
				}
				if fn := asm.BuiltinFunc(i.Constant); i.IsBuiltinCall() && !slices.Contains(optional, fn) {
					used[p.Type][fn] = true
				}
			}
		}
		for name, m := range spec.Maps {
			if !slices.Contains(requiredMaps, m.Type) {
				t.Errorf("map %s is of type %s, which is not probed", name, m.Type)
			}
		}
	}
	for kind, helpers := range used {
		for fn := range helpers {
			if !slices.Contains(requiredHelpers[kind], fn) {
				t.Errorf("%s programs call %s, which is not probed", kind, helperName(fn))
			}
		}
		for _, fn := range requiredHelpers[kind] {
			if !helpers[fn] {
				t.Errorf("%s programs do not call %s, which is required", kind, helperName(fn))
			}
		}
	}
}

func TestProbe(t *testing.T) {
	needKernel(t)
	for _, f := range Probe() {
		t.Log(f)
	}
	if err := Check(Probe()); err != nil {
		t.Error(err)
	}
}

// TestLeaveUnused leaves every optional feature unused, one after another.
func TestLeaveUnused(t *testing.T) {
	needKernel(t)
	for _, key := range OptionalKeys() {
		var o Options
		if err := o.LeaveUnused(key); err != nil {
			t.Fatal(err)
		}
		for _, f := range o.Features() {
			if want := f.Present() && f.Key == key; f.Unused != want || f.Used() != (f.Present() && !want) {
				t.Errorf("without %s: %+v", key, f)
			}
			if !f.Used() && f.Consequence() == "" {
				t.Errorf("without %s: %s: no consequence is told", key, f.Name)
			}
		}
	}
	if err := new(Options).LeaveUnused("nothing"); err == nil || !strings.Contains(err.Error(), KeyTCX) {
		t.Errorf("got %v", err)
	}
}

func TestCheck(t *testing.T) {
	gone := absent{"bpf_new", ebpf.ErrNotSupported}
	list := []Feature{
		{Name: "old", Required: true},
		{Name: "new", Required: true, Err: errors.Join(gone, absent{"bpf_newer", ebpf.ErrNotSupported})},
		{Name: "more", Fallback: "less", Err: gone},
	}
	err := Check(list)
	var missing *MissingError
	if !errors.As(err, &missing) || len(missing.Features) != 1 {
		t.Fatalf("got %v", err)
	}
	if want := "kernel " + KernelRelease() + " lacks what the BPF dataplane needs: new (bpf_new, bpf_newer)"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	list[1].Err = absent{"bpf_new", unix.EPERM}
	if err := Check(list); !strings.Contains(err.Error(), "CAP_BPF") {
		t.Errorf("without the right to ask: %v", err)
	}
	mixed := append(list[:2:2], Feature{Name: "newest", Required: true, Err: gone})
	if err := Check(mixed); strings.Contains(err.Error(), "CAP_BPF") || !strings.Contains(err.Error(), "newest (bpf_new)") {
		t.Errorf("not known and not permitted: %v", err)
	}
	if err := Check(list[:1]); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestTrial(t *testing.T) {
	needKernel(t)
	infos, err := Trial(Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, Options{})
	loaded, err := d.ProgramInfos()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(infos, loaded) {
		t.Errorf("tried %v\nloaded %v", infos, loaded)
	}
}
