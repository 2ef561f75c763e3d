// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestFits compares what maps take at once with the memory there is.
func TestFits(t *testing.T) {
	array := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 20}
	hash := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 20, ValueSize: 30}
	byEntry := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 20, ValueSize: 30, Flags: unix.BPF_F_NO_PREALLOC}
	trie := &ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: 8, ValueSize: 8, Flags: unix.BPF_F_NO_PREALLOC}
	const mib = 1 << 20
	for name, c := range map[string]struct {
		spec      *ebpf.MapSpec
		entries   uint32
		available uint64
		want      string
	}{
		"an array that fits":           {array, mib, 48 * mib, ""},
		"an array that does not":       {array, mib + 1, 48 * mib, "take 24 MiB at once, and at most half of the node's 48 MiB"},
		"the largest array":            {array, math.MaxUint32, 64 << 30, "map m: 4294967295 entries: too large"},
		"a hash that fits":             {hash, mib, 2 * (48 + 24 + 32 + 16) * mib, ""},
		"a hash that does not":         {hash, mib + 1, 2 * (48 + 24 + 32 + 16) * mib, "at once"},
		"one that takes memory later":  {byEntry, mib, 32 * mib, ""},
		"buckets alone are too many":   {byEntry, mib + 1, 32 * mib, "take 32 MiB at once"},
		"the most buckets":             {byEntry, 1 << 27, 8 << 30, ""},
		"more than the kernel makes":   {byEntry, math.MaxUint32, math.MaxUint64, "the kernel refuses a hash map of more than 134217728"},
		"a trie takes memory by entry": {trie, math.MaxUint32, mib, ""},
	} {
		err := fits(c.available, request{"m", c.spec, c.entries})
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (!errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	err := fits(48*mib, request{"a", array, mib / 2}, request{"b", array, mib/2 + 1})
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "map b") || !strings.Contains(err.Error(), "take 24 MiB at once with") {
		t.Errorf("two that do not fit together: %v", err)
	}
}

// TestGrowthBeyondMemory asks for maps of every size there is: each is refused by
// name, and nothing is made.
func TestGrowthBeyondMemory(t *testing.T) {
	d := open(t, Options{})
	for _, name := range tables {
		if d.maps[name].Type() == ebpf.LPMTrie {
			continue // takes memory by entry
		}
		if _, err := d.PrepareGrowth(map[string]uint32{name: math.MaxUint32}); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, g := range []*Generations{d.V4.Established, d.V4.Embryonic} {
		before := g.Current()
		if err := g.Grow(math.MaxUint32); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), g.Name()) {
			t.Errorf("%s: %v", g.Name(), err)
		}
		if now, draining := g.Maps(); now != before || draining != nil {
			t.Errorf("%s began to grow", g.Name())
		}
	}
}
