// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/millrace-project/millrace/bpf/layout"
)

func key4(t testing.TB, s string, proto uint8) layout.FrontendKeyV4 {
	t.Helper()
	k, ok := layout.NewFrontendKey[layout.V4](netip.MustParseAddrPort(s), proto)
	if !ok {
		t.Fatalf("%s is not IPv4", s)
	}
	return k
}

func TestEveryVariantLoads(t *testing.T) {
	// Packet programs have no variants; how they are attached is another test's.
	for name, o := range map[string]Options{
		"newest":                        {},
		"without bpf_set_retval":        {NoSetRetval: true, SocketsOnly: true},
		"without bpf_skc_to_mptcp_sock": {NoMPTCPSock: true, SocketsOnly: true},
		"without both":                  {NoSetRetval: true, NoMPTCPSock: true, SocketsOnly: true},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, o)
			infos, err := d.ProgramInfos()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range cgroupPrograms {
				if d.Program(p.name) == nil {
					t.Errorf("%s is not loaded", p.name)
				}
			}
			for _, i := range infos {
				t.Logf("%-20s %5d instructions, %6d verified", i.Name, i.Instructions, i.Verified)
				if i.Instructions == 0 {
					t.Errorf("%s has no instructions", i.Name)
				}
				if _, err := os.Lstat(filepath.Join(d.opts.PinPath, "programs", i.Name)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestReopenKeepsEntries(t *testing.T) {
	path := pinPath(t)
	d := open(t, Options{PinPath: path, SocketsOnly: true})
	if len(d.Adopted()) != 0 {
		t.Errorf("adopted in an empty place: %v", d.Adopted())
	}
	key, value := key4(t, "10.0.0.1:80", layout.ProtoTCP), layout.Frontend{ServiceID: 7}
	if err := d.V4.Frontends.Put(&key, &value); err != nil {
		t.Fatal(err)
	}
	ctKey, _, _ := layout.NewCtKey[layout.V4](netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:9"), 6)
	if err := d.V4.Established.Current().Put(&ctKey, &layout.CtEntryV4{Nonce: 9}); err != nil {
		t.Fatal(err)
	}
	id := func(d *Dataplane) uint32 {
		var id uint32
		if err := d.V4.Established.Outer.Lookup(slotCurrent, &id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	before := id(d)
	// A crash between creating the map and filling the slot.
	if err := d.V6.Established.Outer.Delete(slotCurrent); err != nil {
		t.Fatal(err)
	}
	d.Close()

	d = open(t, Options{PinPath: path, SocketsOnly: true})
	var got layout.Frontend
	if err := d.V4.Frontends.Lookup(&key, &got); err != nil || got != value {
		t.Errorf("frontend after reopening: %v, %v", got, err)
	}
	var e layout.CtEntryV4
	if err := d.V4.Established.Current().Lookup(&ctKey, &e); err != nil || e.Nonce != 9 {
		t.Errorf("conntrack entry after reopening: %v, %v", e, err)
	}
	if id(d) != before {
		t.Error("the slot names another map")
	}
	var have uint32
	if err := d.V6.Established.Outer.Lookup(slotCurrent, &have); err != nil {
		t.Errorf("empty slot was not repaired: %v", err)
	}
	if len(d.Adopted()) == 0 {
		t.Error("nothing adopted")
	}
}

// TestStrangeMapIsSetAside finds a map that no release laid out so.
func TestStrangeMapIsSetAside(t *testing.T) {
	path := pinPath(t)
	needKernel(t)
	if err := makePinDirs(path); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := errors.Join(m.Put(uint32(1), uint32(1)), m.Pin(filepath.Join(path, "maps", "frontends_v4"))); err != nil {
		t.Fatal(err)
	}
	d, err := Open(testSizes(Options{PinPath: path, SocketsOnly: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if found, blank := d.Past(); !found || !slices.Contains(blank, "frontends_v4") {
		t.Errorf("past %v, blank %v", found, blank)
	}
	if s, err := d.Succeed(new(sync.Mutex)); err != nil || !s.Done {
		t.Errorf("%+v, %v", s, err)
	}
	var key layout.FrontendKeyV4
	if err := d.V4.Frontends.NextKey(nil, &key); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("the strange map's content was taken over: %v", err)
	}
}

func TestPinPathMustBeBPF(t *testing.T) {
	if _, err := Open(Options{PinPath: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "BPF filesystem") {
		t.Errorf("got %v", err)
	}
}

func linkID(t testing.TB, path string) link.ID {
	t.Helper()
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.ID
}

func TestCgroupLinksAreAdopted(t *testing.T) {
	path, cgroup := pinPath(t), ""
	d := open(t, Options{PinPath: path, SocketsOnly: true})
	cgroup = testCgroup(t)
	first, err := d.AttachCgroup(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]link.ID{}
	for _, a := range first {
		if a.Adopted {
			t.Errorf("%s adopted", a)
		}
		ids[a.Pin] = linkID(t, a.Pin)
	}
	d.Close()

	d = open(t, Options{PinPath: path, SocketsOnly: true})
	second, err := d.AttachCgroup(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	if len(second) != len(cgroupPrograms) {
		t.Errorf("%d attachments", len(second))
	}
	for _, a := range second {
		if !a.Adopted || linkID(t, a.Pin) != ids[a.Pin] {
			t.Errorf("%s: link was made anew", a)
		}
	}
	// Another cgroup: the links move.
	other := testCgroup(t)
	third, err := d.AttachCgroup(other)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range third {
		if a.Adopted || linkID(t, a.Pin) == ids[a.Pin] {
			t.Errorf("%s: link did not move", a)
		}
	}
	// That cgroup goes: attachments are severed, and made anew.
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	eventually(t, "attachments of a removed cgroup are severed", func() bool {
		all, err := d.Attachments()
		return err == nil && len(all) == len(cgroupPrograms) && all[0].Severed
	})
	if _, err := d.AttachCgroup(cgroup); err != nil {
		t.Fatal(err)
	}
	if err := d.DetachCgroup(); err != nil {
		t.Fatal(err)
	}
	if all, err := d.Attachments(); err != nil || len(all) != 0 {
		t.Errorf("attachments after detaching: %v, %v", all, err)
	}
}

func TestQuiesce(t *testing.T) {
	d := open(t, Options{SocketsOnly: true})
	for range 3 {
		if err := d.Quiesce(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRemovePinsElsewhere is given a directory that is on no BPF filesystem, by
// mistake: nothing of it is touched.
func TestRemovePinsElsewhere(t *testing.T) {
	dir := t.TempDir()
	kept := filepath.Join(dir, "maps", "of-somebody")
	if err := os.MkdirAll(kept, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := RemovePins(dir); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}
