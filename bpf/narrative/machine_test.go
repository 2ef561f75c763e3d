// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf"
)

// machine is a network namespace on a wire to the node: a pod, or all that is
// beyond the uplink.
type machine struct {
	t    testing.TB
	ns   netns.NsHandle
	host netlink.Link // the node's end of the wire
}

// newMachine makes a namespace that has the addresses and reaches everything by
// the node, and lets the node reach it. The node's end gets the role's programs.
func newMachine(t testing.TB, name string, role bpf.Role, mtu int, addrs ...netip.Addr) *machine {
	t.Helper()
	m := &machine{t: t}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("machine %s: %s: %v", name, what, err)
		}
	}
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		var err error
		m.ns, err = netns.New()
		done <- err
	}()
	must("new namespace", <-done)
	t.Cleanup(func() { m.ns.Close() })

	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must("wire", netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(m.ns)}))
	var err error
	m.host, err = netlink.LinkByName(name)
	must("find the wire", err)
	t.Cleanup(func() { netlink.LinkDel(m.host) })
	must("IPv6 address", os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/addr_gen_mode", []byte("1"), 0))
	must("checksums", finishChecksums(name))
	must("MTU", netlink.LinkSetMTU(m.host, mtu))
	must("up", netlink.LinkSetUp(m.host))

	in, err := netlink.NewHandleAt(m.ns)
	must("netlink", err)
	defer in.Close()
	eth, err := in.LinkByName("eth0")
	must("find eth0", err)
	lo, err := in.LinkByName("lo")
	must("find lo", err)
	must("lo up", in.LinkSetUp(lo))
	must("eth0 up", in.LinkSetUp(eth))
	// Until both ends are up for good, what is sent is lost.
	m.eventually("the wire is up", func() bool {
		one, err := netlink.LinkByIndex(m.host.Attrs().Index)
		must("state of the wire", err)
		two, err := in.LinkByIndex(eth.Attrs().Index)
		must("state of eth0", err)
		return one.Attrs().OperState == netlink.OperUp && two.Attrs().OperState == netlink.OperUp
	})
	hostMAC, mac := m.host.Attrs().HardwareAddr, eth.Attrs().HardwareAddr
	for _, gw := range []string{"169.254.1.1", "fe80::1"} {
		ip := net.ParseIP(gw)
		must("gateway", in.NeighAdd(&netlink.Neigh{LinkIndex: eth.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: hostMAC}))
	}
	for _, a := range addrs {
		bits := a.BitLen()
		must("address", in.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(a), Flags: unix.IFA_F_NODAD}))
		gw := net.ParseIP("169.254.1.1")
		if bits == 128 {
			gw = net.ParseIP("fe80::1")
		}
		err := in.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: everything(bits), Gw: gw, Flags: int(netlink.FLAG_ONLINK)})
		if !errors.Is(err, unix.EEXIST) {
			must("default route", err)
		}
		must("neighbour", netlink.NeighAdd(&netlink.Neigh{LinkIndex: m.host.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: a.AsSlice(), HardwareAddr: mac}))
		// IPv6 makes an address a local one a little later.
		m.eventually("address "+a.String()+" is local", func() bool {
			family := netlink.FAMILY_V4
			if bits == 128 {
				family = netlink.FAMILY_V6
			}
			filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: ipNet(a)}
			local, err := in.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
			must("list local addresses", err)
			return len(local) > 0
		})
		must("route to it", netlink.RouteAdd(&netlink.Route{LinkIndex: m.host.Attrs().Index, Dst: ipNet(a), Scope: netlink.SCOPE_LINK}))
	}
	if _, err := node.d.AttachDevice(m.host.Attrs().Index, role); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.d.DetachDevice(m.host.Attrs().Index); err != nil {
			t.Error(err)
		}
	})
	return m
}

// finishChecksums lets a device leave the completion of checksums to the kernel.
// A veth would carry them unfinished, and its other end believe them unseen.
func finishChecksums(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(req.name[:], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}

// thisMachine is the node.
func thisMachine(t testing.TB) *machine {
	t.Helper()
	return &machine{t: t, ns: node.ns}
}

// eventually waits until a condition holds.
func (m *machine) eventually(what string, cond func() bool) {
	m.t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func everything(bits int) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}
}

// do runs f in the machine's namespace; what f opens stays there.
func (m *machine) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := netns.Set(m.ns); err != nil {
			done <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
