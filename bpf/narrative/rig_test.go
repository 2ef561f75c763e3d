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
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
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
	node.devs = make(map[string]*net.Interface)
	for _, name := range []string{"poda", "podb", "uplink"} {
		if err := addDevice(name); err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
	}
	if err := addRoutes(); err != nil {
		return err
	}
	d, err := bpf.Open(bpf.Options{
		PinPath: filepath.Join(bpffs, "narrative"), MaxFrontends: 4096, MaxBackends: 8192, MaxRoutes: 1024,
		MaxIDs: 1024, MaxEmbryonic: 16384, MaxEstablished: 16384,
	})
	node.d = d
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

// family is the cast of a story in one address family.
type family struct {
	name                        string
	n                           int
	node, node2                 netip.Addr // this node and another
	uplinkBits                  int
	podA, podB                  netip.Addr // on this node
	podC                        netip.Addr // on the other
	outside                     netip.Addr // no part of the cluster
	router                      netip.Addr // on the way to anywhere
	vip, vip2                   netip.Addr // cluster addresses of services
	everything                  string
	ipLen                       int
}

var families = []*family{
	{
		name: "v4", n: 4, node: netip.MustParseAddr("192.168.7.1"), node2: netip.MustParseAddr("192.168.7.2"), uplinkBits: 24,
		podA: netip.MustParseAddr("10.1.0.10"), podB: netip.MustParseAddr("10.1.0.11"), podC: netip.MustParseAddr("10.2.0.20"),
		outside: netip.MustParseAddr("203.0.113.9"), router: netip.MustParseAddr("198.51.100.1"),
		vip: netip.MustParseAddr("10.96.0.1"), vip2: netip.MustParseAddr("10.96.0.2"), everything: "0.0.0.0/0", ipLen: 20,
	},
	{
		name: "v6", n: 6, node: netip.MustParseAddr("fd07::1"), node2: netip.MustParseAddr("fd07::2"), uplinkBits: 64,
		podA: netip.MustParseAddr("fd10:1::10"), podB: netip.MustParseAddr("fd10:1::11"), podC: netip.MustParseAddr("fd10:2::20"),
		outside: netip.MustParseAddr("2001:db8:9::9"), router: netip.MustParseAddr("2001:db8:1::1"),
		vip: netip.MustParseAddr("fd96::1"), vip2: netip.MustParseAddr("fd96::2"), everything: "::/0", ipLen: 40,
	},
}

// at is an address with a port.
func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// host is the node as one story sees it.
type host struct {
	*family
	t      testing.TB
	proto  uint8
	config layout.Config
	next   uint32 // first free element of the backends array
}

const (
	snatFirst = 50000
	snatLast  = 50099
)

// newHost empties the node for a story.
func newHost(t testing.TB, f *family, proto uint8) *host {
	t.Helper()
	h := &host{family: f, t: t, proto: proto}
	clear := func(m *ebpf.Map) {
		t.Helper()
		var key, last []byte
		for {
			if err := m.NextKey(nil, &key); errors.Is(err, ebpf.ErrKeyNotExist) {
				return
			} else if err != nil {
				t.Fatalf("next key: %v", err)
			}
			if err := m.Delete(key); err != nil {
				t.Fatalf("empty map: %v", err)
			}
			if last != nil && string(last) == string(key) {
				t.Fatal("a map does not get empty")
			}
			last = append(last[:0], key...)
		}
	}
	for _, fm := range []*bpf.FamilyMaps{node.d.V4, node.d.V6} {
		for _, m := range []*ebpf.Map{fm.Frontends, fm.Routes, fm.Fragments, fm.Embryonic.Current, fm.Established.Current} {
			clear(m)
		}
	}
	clear(node.d.Counters)
	h.config = layout.Config{
		NodeAddrV4: families[0].node.As4(), NodeAddrV6: families[1].node.As16(),
		SnatPortFirst: snatFirst, SnatPortLast: snatLast, Flags: layout.ConfigEnabled,
		TCPSynTimeout: 60, TCPEstablishedTimeout: 3600, TCPCloseTimeout: 10, UDPTimeout: 30, UDPStreamTimeout: 120,
	}
	h.configure(func(*layout.Config) {})
	h.route(h.podA, layout.RoutePod|layout.RouteLocal)
	h.route(h.podB, layout.RoutePod|layout.RouteLocal)
	h.route(h.podC, layout.RoutePod)
	h.route(h.node, layout.RouteNode|layout.RouteLocal)
	h.route(h.node2, layout.RouteNode)
	return h
}

// configure changes the settings.
func (h *host) configure(change func(*layout.Config)) {
	h.t.Helper()
	change(&h.config)
	if err := node.d.WriteConfig(h.config); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) fastPath() {
	h.configure(func(c *layout.Config) { c.Flags |= layout.ConfigFastPath })
}

func (h *host) route(a netip.Addr, flags layout.RouteFlags) {
	h.t.Helper()
	p := netip.PrefixFrom(a, a.BitLen())
	var err error
	if h.n == 4 {
		key, _ := layout.NewRouteKey[layout.V4](p)
		err = node.d.V4.Routes.Put(key, layout.Route{Flags: flags})
	} else {
		key, _ := layout.NewRouteKey[layout.V6](p)
		err = node.d.V6.Routes.Put(key, layout.Route{Flags: flags})
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// where is a backend.
type where struct {
	netip.AddrPort
	flags layout.BackendFlags
}

func local(a netip.AddrPort) where  { return where{a, layout.BackendLocal} }
func remote(a netip.AddrPort) where { return where{a, 0} }

// service programs a frontend of the story's protocol with backends.
func (h *host) service(frontend netip.AddrPort, flags layout.FrontendFlags, backends ...where) {
	h.t.Helper()
	if h.n == 4 {
		program[layout.V4](h, node.d.V4, frontend, flags, backends)
	} else {
		program[layout.V6](h, node.d.V6, frontend, flags, backends)
	}
}

func program[A layout.IP](h *host, m *bpf.FamilyMaps, frontend netip.AddrPort, flags layout.FrontendFlags, backends []where) {
	h.t.Helper()
	var elems []layout.Backend[A]
	for _, b := range backends {
		e, ok := layout.NewBackend[A](b.AddrPort, b.flags)
		if !ok {
			h.t.Fatalf("backend %s is of the other family", b.AddrPort)
		}
		elems = append(elems, e)
	}
	first := h.next
	h.next += uint32(len(elems))
	if len(elems) > 0 {
		if err := bpf.WriteBackends(m, first, elems); err != nil {
			h.t.Fatal(err)
		}
	}
	key, _ := layout.NewFrontendKey[A](frontend, h.proto)
	value := layout.Frontend{ServiceID: 7, FirstBackend: first, BackendCount: uint32(len(elems)), Flags: flags}
	if err := m.Frontends.Put(key, value); err != nil {
		h.t.Fatal(err)
	}
}

// Verdicts of programs, as the kernel numbers them.
const (
	pass     = 0xffffffff
	drop     = 2
	redirect = 7
)

func verdictName(v uint32) string {
	switch v {
	case pass:
		return "pass"
	case drop:
		return "drop"
	case redirect:
		return "redirect"
	}
	return fmt.Sprint(v)
}

// skbuff is the beginning of struct __sk_buff.
type skbuff struct {
	_       [10]uint32
	Ifindex uint32
}

// run gives a packet to the program of a hook ("ingress" is into the node) of a
// device and returns its verdict and the packet after it.
func (h *host) run(dev, hook string, packet []byte) (uint32, []byte) {
	h.t.Helper()
	i := node.devs[dev]
	in := append([]byte(nil), packet...)
	if hook == "ingress" {
		copy(in, i.HardwareAddr)
		copy(in[6:], peerMAC)
	} else {
		copy(in, peerMAC)
		copy(in[6:], i.HardwareAddr)
	}
	return h.runRaw(dev, hook, in)
}

// runRaw does so with the frame's own link addresses.
func (h *host) runRaw(dev, hook string, in []byte) (uint32, []byte) {
	h.t.Helper()
	role := "pod"
	if dev == "uplink" {
		role = "uplink"
	}
	opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: skbuff{Ifindex: uint32(node.devs[dev].Index)}}
	verdict, err := node.d.Program("tc_" + role + "_" + hook).Run(&opts)
	if err != nil {
		h.t.Fatalf("run program of %s %s: %v", dev, hook, err)
	}
	return verdict, opts.DataOut
}

// in lets a packet enter by a device; it must go on to the stack.
func (h *host) in(dev string, p packet) packet {
	h.t.Helper()
	return h.hook(dev, "ingress", p)
}

// out lets a packet leave the stack by a device; it must go on to the wire.
func (h *host) out(dev string, p packet) packet {
	h.t.Helper()
	return h.hook(dev, "egress", p)
}

func (h *host) hook(dev, hook string, p packet) packet {
	h.t.Helper()
	verdict, data := h.run(dev, hook, h.build(p))
	if verdict != pass {
		h.t.Fatalf("%s at %s %s: %s, want pass", p, dev, hook, verdictName(verdict))
	}
	return h.parse(data)
}

// through lets a packet enter by one device, pass the stack, and leave by another.
func (h *host) through(in, out string, p packet) packet {
	h.t.Helper()
	p = h.in(in, p)
	p.ttl--
	return h.out(out, p)
}

// counted is how often a reason was counted, on all devices.
func (h *host) counted(r layout.Reason) uint64 {
	h.t.Helper()
	all, err := node.d.ReadCounters()
	if err != nil {
		h.t.Fatal(err)
	}
	var n uint64
	for k, c := range all {
		if k.Reason == r {
			n += c.Packets
		}
	}
	return n
}

func (h *host) wantCounted(r layout.Reason, n uint64) {
	h.t.Helper()
	if got := h.counted(r); got != n {
		h.t.Errorf("reason %s was counted %d times, want %d", r, got, n)
	}
}

// each tells a story in both families and with the given protocols.
func each(t *testing.T, protos []uint8, story func(t *testing.T, h *host)) {
	t.Helper()
	if node.d == nil {
		t.Skip("not root: programs cannot be loaded")
	}
	for _, f := range families {
		for _, proto := range protos {
			name := f.name + "/" + strings.ToLower(map[uint8]string{layout.ProtoTCP: "TCP", layout.ProtoUDP: "UDP"}[proto])
			t.Run(name, func(t *testing.T) { story(t, newHost(t, f, proto)) })
		}
	}
}

var (
	both = []uint8{layout.ProtoTCP, layout.ProtoUDP}
	tcp  = []uint8{layout.ProtoTCP}
	udp  = []uint8{layout.ProtoUDP}
)
