// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf"
)

// The tests run in a process of their own with network and mount namespaces of
// its own, so that everything is gone when it ends.
const envChild = "MILLRACE_NARRATIVE_CHILD"

// bpffs is where the child mounts a BPF filesystem; only the child sees it.
const bpffs = "/mnt"

// node is the one dataplane under test; tests run one after another and start
// from empty maps, see newHost.
var node struct {
	d    *bpf.Dataplane
	ns   netns.NsHandle
	devs map[string]*net.Interface
}

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envChild) != "":
		if err := setUp(); err != nil {
			fmt.Fprintf(os.Stderr, "set up the narratives' node: %+v\n", err)
			os.Exit(1)
		}
		code := m.Run()
		node.d.Close()
		os.Exit(code)
	case os.Geteuid() != 0:
		os.Exit(m.Run()) // every test skips
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), envChild+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the death signal is sent when this thread ends
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "run the narratives:", err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// setUp makes the node: two pods' devices and an uplink, which routes to
// another node, and the dataplane.
func setUp() error {
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount a BPF filesystem: %w", err)
	}
	for _, path := range []string{"net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile(filepath.Join("/proc/sys", path), []byte("1"), 0); err != nil {
			return fmt.Errorf("let the node forward: %w", err)
		}
	}
	var err error
	if node.ns, err = netns.Get(); err != nil {
		return fmt.Errorf("own namespace: %w", err)
	}
	node.devs = make(map[string]*net.Interface)
	for _, name := range []string{"poda", "podb", "uplink"} {
		if err := addDevice(name); err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
	}
	if err := addRoutes(); err != nil {
		return err
	}
	node.d, err = bpf.Open(bpf.Options{
		PinPath: filepath.Join(bpffs, "narrative"), MaxFrontends: 4096, MaxBackends: 8192, MaxRoutes: 1024,
		MaxIDs: 1024, MaxEmbryonic: 16384, MaxEstablished: 16384,
	})
	return err
}

func addDevice(name string) error {
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-peer"}
	if err := netlink.LinkAdd(v); err != nil {
		return err
	}
	for _, n := range []string{name, name + "-peer"} {
		// No address by itself: the tests' packets are the only ones.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+n+"/addr_gen_mode", []byte("1"), 0); err != nil {
			return err
		}
		l, err := netlink.LinkByName(n)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	node.devs[name] = i
	return nil
}

// peerMAC is the next hop's on the uplink.
var peerMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0x99}

func addRoutes() error {
	index := node.devs["uplink"].Index
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return err
	}
	for _, f := range families {
		addr, err := netlink.ParseAddr(netip.PrefixFrom(f.node, f.uplinkBits).String())
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
		neigh := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: f.node2.AsSlice(), HardwareAddr: peerMAC}
		if err := netlink.NeighAdd(neigh); err != nil {
			return fmt.Errorf("neighbour: %w", err)
		}
		_, all, err := net.ParseCIDR(f.everything)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: all, Gw: f.node2.AsSlice()}); err != nil {
			return fmt.Errorf("route: %w", err)
		}
	}
	return nil
}
