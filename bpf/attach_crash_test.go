// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestBrokenOffPins has pins as a crash leaves them before they take their place:
// their links are kept, not made anew, and none is left of a device that is gone.
func TestBrokenOffPins(t *testing.T) {
	needKernel(t)
	if err := haveTCX(); err != nil {
		t.Skipf("no tcx: %v", err)
	}
	ifindex, cgroup, path := veth(t, "brk"), testCgroup(t), pinPath(t)
	d := open(t, Options{PinPath: path})
	breakOff := func(attachments []Attachment, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range attachments {
			if err := os.Rename(a.Pin, a.Pin+fresh); err != nil {
				t.Fatal(err)
			}
		}
	}
	attach := func() []Attachment {
		t.Helper()
		devices, err := d.AttachDevice(ifindex, Pod)
		if err != nil {
			t.Fatal(err)
		}
		sockets, err := d.AttachCgroup(cgroup)
		if err != nil {
			t.Fatal(err)
		}
		return append(devices, sockets...)
	}
	first := attach()
	id := linkID(t, first[0].Pin)
	breakOff(first, nil)
	d.Close()
	d = open(t, Options{PinPath: path})
	for _, a := range attach() {
		if !a.Adopted {
			t.Errorf("%s was made anew", a)
		}
	}
	if linkID(t, first[0].Pin) != id {
		t.Error("link was made anew")
	}

	breakOff(d.AttachDevice(ifindex, Pod))
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	if err := d.DetachSevered(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(path, "links", "*"+fresh)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
