// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/millrace-project/millrace/bpf/layout"
)

// filters counts the filters on a hook, by the name of their program.
func filters(t testing.TB, ifindex int, hook Hook) map[string]int {
	t.Helper()
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		t.Fatal(err)
	}
	list, err := netlink.FilterList(l, clsactParent(hook))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, f := range list {
		if b, ok := f.(*netlink.BpfFilter); ok {
			name, _, _ := strings.Cut(b.Name, ":")
			out[name]++
		}
	}
	return out
}

func TestDevicesWithTCX(t *testing.T) {
	needKernel(t)
	if err := haveTCX(); err != nil {
		t.Skipf("no tcx: %v", err)
	}
	ifindex := veth(t, "tcx")
	path := pinPath(t)
	d := open(t, Options{PinPath: path})
	first, err := d.AttachDevice(ifindex, Pod)
	if err != nil {
		t.Fatal(err)
	}
	if len(first) != 2 || first[0].Program != "tc_pod_egress" || first[1].Program != "tc_pod_ingress" {
		t.Errorf("attached %+v", first)
	}
	id := linkID(t, first[0].Pin)
	d.Close()

	d = open(t, Options{PinPath: path})
	second, err := d.AttachDevice(ifindex, Pod)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range second {
		if a.Kind != KindTCX || !a.Adopted {
			t.Errorf("%s: not adopted", a)
		}
	}
	if linkID(t, second[0].Pin) != id {
		t.Error("link was made anew")
	}
	// The role changes in place.
	if a, err := d.AttachDevice(ifindex, Uplink); err != nil || !a[0].Adopted || a[0].Program != "tc_uplink_egress" {
		t.Errorf("changed role: %+v, %v", a, err)
	}
	other := veth(t, "tcxo")
	if _, err := d.AttachDevice(other, Uplink); err != nil {
		t.Fatal(err)
	}
	if err := d.DetachDevice(other); err != nil {
		t.Fatal(err)
	}
	if all, err := d.Attachments(); err != nil || len(all) != 2 || all[0].Ifindex != ifindex {
		t.Errorf("attachments after detaching the other: %v, %v", all, err)
	}
	// The device goes.
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	all, err := d.Attachments()
	if err != nil || len(all) != 2 || !all[0].Severed || !all[1].Severed {
		t.Errorf("attachments of a removed device: %+v, %v", all, err)
	}
	if err := d.DetachSevered(); err != nil {
		t.Fatal(err)
	}
	if all, err := d.Attachments(); err != nil || len(all) != 0 {
		t.Errorf("still there: %v, %v", all, err)
	}
}

func TestDevicesWithClsact(t *testing.T) {
	needKernel(t)
	ifindex := veth(t, "cls")
	path := pinPath(t)
	d := open(t, Options{PinPath: path, ForceClsact: true})
	// Somebody else's filter stays.
	other := clsactFilter(ifindex, Ingress, clsactHandles[0], clsactPriority)
	if _, err := d.AttachDevice(ifindex, Pod); err != nil {
		t.Fatal(err)
	}
	other.Handle, other.Priority, other.Fd, other.Name = 1, 2, d.Program("tc_pod_egress").FD(), "other"
	if err := netlink.FilterAdd(other); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		a, err := d.AttachDevice(ifindex, Pod)
		if err != nil || !a[0].Adopted || a[0].Kind != KindClsact {
			t.Errorf("%+v, %v", a, err)
		}
	}
	if f := filters(t, ifindex, Ingress); f["tc_pod_ingress"] != 1 || f["other"] != 1 || len(f) != 2 {
		t.Errorf("ingress filters %v", f)
	}
	if f := filters(t, ifindex, Egress); f["tc_pod_egress"] != 1 || len(f) != 1 {
		t.Errorf("egress filters %v", f)
	}
	d.Close()

	// A kernel that got tcx: moved, and nothing is left to run twice.
	d = open(t, Options{PinPath: path})
	if d.tcx {
		if _, err := d.AttachDevice(ifindex, Pod); err != nil {
			t.Fatal(err)
		}
		if f := filters(t, ifindex, Ingress); f["tc_pod_ingress"] != 0 || f["other"] != 1 {
			t.Errorf("ingress filters after moving to tcx: %v", f)
		}
		d.Close()
		d = open(t, Options{PinPath: path, ForceClsact: true})
		if _, err := d.AttachDevice(ifindex, Pod); err != nil {
			t.Fatal(err)
		}
		if all, err := d.Attachments(); err != nil || len(all) != 2 || all[0].Kind != KindClsact {
			t.Errorf("%v, %v", all, err)
		}
	}
	if err := RemovePins(path); err != nil {
		t.Fatal(err)
	}
	if f := filters(t, ifindex, Ingress); f["tc_pod_ingress"] != 0 || f["other"] != 1 {
		t.Errorf("ingress filters after removal: %v", f)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("pins are left: %v", err)
	}
}

func TestMissingDevice(t *testing.T) {
	d := open(t, Options{})
	if _, err := d.AttachDevice(1<<20, Pod); err == nil || !strings.Contains(err.Error(), "tc_pod_egress") {
		t.Errorf("got %v", err)
	}
	if all, err := d.Attachments(); err != nil || len(all) != 0 {
		t.Errorf("left behind: %v, %v", all, err)
	}
}

// Traffic goes on through a pair of devices while programs are exchanged.
func TestTrafficWhileReattaching(t *testing.T) {
	needKernel(t)
	path := pinPath(t)
	d := open(t, Options{PinPath: path, SocketsOnly: true})
	cgroup := testCgroup(t)
	joinCgroup(t, cgroup)
	if _, err := d.AttachCgroup(cgroup); err != nil {
		t.Fatal(err)
	}
	r := &sockRig{TB: t, d: d}
	r.configure(layout.ConfigEnabled)
	svc := r.service(layout.ProtoTCP, "10.96.0.1:80", 0, tcpServer(t, "127.0.0.1:0"))
	stop := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		var failed error
		for n := 0; ; n++ {
			select {
			case <-stop:
				result <- failed
				return
			default:
			}
			c, err := net.Dial("tcp", svc.String())
			if err != nil {
				failed = err
				continue
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	for range 3 {
		next := open(t, Options{PinPath: path, SocketsOnly: true})
		if _, err := next.AttachCgroup(cgroup); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if err := <-result; err != nil {
		t.Errorf("a connect failed: %v", err)
	}
}
