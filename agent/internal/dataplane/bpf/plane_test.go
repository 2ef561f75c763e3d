// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/held"
	mbpf "github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

const both = "10.1.0.5:8080@n1/true,192.168.9.3:8080@n2/false"

var wantFrontends = []string{
	"ClusterIP 10.9.0.1:80 " + both,
	"ClusterIP fd09::1:80 ",
	"LoadBalancer 203.0.113.1:80 " + both,
	"NodePort 127.0.0.1:30080 " + both,
	"NodePort 192.168.9.2:30080 " + both,
	"NodePort 2001:db8::2:30080 ",
	"NodePort ::1:30080 ",
}

// TestPlane takes a node from nothing to a service, through damage and repair,
// a restart, and back to nothing, on the real kernel.
func TestPlane(t *testing.T) {
	n := newNode(t)
	devices(t)
	result := n.give(true, cluster1()...)
	if len(result.Errors) != 0 || len(result.Report.GetProblems()) != 0 {
		t.Fatalf("errors %v, problems %v", result.Errors, result.Report.GetProblems())
	}
	if got := result.Report.GetAttachedEndpoints(); len(got) != 1 || got[0].GetKey() != "default/p1" {
		t.Fatalf("attached endpoints %v", got)
	}
	equal(t, "frontends", n.frontends(), wantFrontends)
	equal(t, "differences", n.diff(), nil)
	config, err := n.kernel.ReadConfig()
	if err != nil || config.NodeAddrV4.String() != "192.168.9.2" || config.NodeAddrV6.String() != "2001:db8::2" ||
		config.Flags != layout.ConfigEnabled|layout.ConfigFastPath || config.SnatPortFirst != 20000 {
		t.Fatalf("config %v, %v", config, err)
	}
	state := n.plane.State()
	roles := map[string]string{}
	for _, d := range state.GetDevices() {
		roles[d.GetName()] = d.GetRole()
	}
	if roles["pod1"] != "pod" || roles["up0"] != "uplink" || roles["up0-x"] != "ignored" {
		t.Fatalf("roles %v", roles)
	}
	n.damageAndRepair()
	n.restart()
	n.dump()

	b := held.NewBatch()
	for _, name := range n.store.Names() {
		b.Remove(name)
	}
	n.store.Apply(b)
	if result := n.plane.Apply(context.Background(), dataplane.Change{Names: b.Names()}); len(result.Errors) != 0 {
		t.Fatalf("errors %v", result.Errors)
	}
	for _, m := range mapsOf(n) {
		if m.GetEntries() != 0 && !strings.HasPrefix(m.GetName(), "config") && !strings.HasPrefix(m.GetName(), "backends") && m.GetName() != "ids" {
			t.Errorf("map %s has %d entries left", m.GetName(), m.GetEntries())
		}
	}
	n.plane.ForgetIDs(n.plane.RestingIDs())
	if given, resting := n.plane.ids.Len(); given != 0 || resting != 0 {
		t.Errorf("%d numbers given, %d resting", given, resting)
	}
}

func mapsOf(n *testNode) []*agentv1.MapState {
	n.Helper()
	list, err := n.plane.Maps()
	if err != nil {
		n.Fatal(err)
	}
	return list
}

func (n *testNode) damageAndRepair() {
	n.Helper()
	key := func(addr string, port uint16) layout.FrontendKeyV4 {
		return layout.FrontendKeyV4{Addr: layout.V4(ip(addr)), Port: layout.Port(port), Proto: 6}
	}
	var whole layout.Frontend
	gone, altered := key("10.9.0.1", 80), key("203.0.113.1", 80)
	if err := n.kernel.V4.Frontends.Lookup(&altered, &whole); err != nil {
		n.Fatal(err)
	}
	stray := whole
	stray.ServiceID = 4711
	whole.BackendCount = 1
	route, _ := layout.NewRouteKey[layout.V4](mustPrefix("10.1.1.0/24"))
	podDevice, err := netlink.LinkByName("pod1")
	if err != nil {
		n.Fatal(err)
	}
	strayKey := key("10.66.0.1", 66)
	if err := errors.Join(
		n.kernel.V4.Frontends.Delete(&gone),
		n.kernel.V4.Frontends.Put(&altered, &whole),
		n.kernel.V4.Frontends.Put(&strayKey, &stray),
		n.kernel.V4.Routes.Delete(&route),
		n.kernel.DetachDevice(podDevice.Attrs().Index),
		n.kernel.DetachCgroup(),
		n.kernel.WriteConfig(layout.Config{}),
	); err != nil {
		n.Fatal(err)
	}
	got := n.diff()
	for _, want := range []string{
		"frontends_v4 10.9.0.1:80/TCP", "frontends_v4 203.0.113.1:80/TCP", "frontends_v4 10.66.0.1:66/TCP",
		"routes_v4 10.1.1.0/24", "config 0", "cgroup " + n.cgroup + " sock_connect4",
		fmt.Sprintf("device pod1 %d", podDevice.Attrs().Index),
	} {
		if !slices.Contains(got, want) {
			n.Errorf("the differences lack %q: %q", want, got)
		}
	}
	repaired, remaining, _, err := n.plane.Repair(context.Background())
	if err != nil || repaired != len(got) || len(remaining) != 0 {
		n.Fatalf("repaired %d of %d, remaining %v, %v", repaired, len(got), remaining, err)
	}
	equal(n.T, "differences after repair", n.diff(), nil)
	equal(n.T, "frontends after repair", n.frontends(), wantFrontends)
}

// restart starts anew over the same pins with what the log would give back. An
// entry of a service that only the kernel knows stays until the node is in sync.
func (n *testNode) restart() {
	n.Helper()
	stranger := layout.FrontendKeyV4{Addr: layout.V4(ip("10.77.0.1")), Port: layout.Port(77), Proto: 6}
	if err := n.kernel.V4.Frontends.Put(&stranger, &layout.Frontend{ServiceID: 99}); err != nil {
		n.Fatal(err)
	}
	n.start()
	result := n.plane.Apply(context.Background(), dataplane.Change{Names: n.store.Names()})
	if len(result.Errors) != 0 {
		n.Fatalf("errors %v", result.Errors)
	}
	for _, a := range n.system.Attachments() {
		if !a.GetAdopted() {
			n.Errorf("%s at %s was attached anew", a.GetProgram(), a.GetTarget())
		}
	}
	equal(n.T, "frontends after restart", n.frontends(), wantFrontends)
	var v layout.Frontend
	if err := n.kernel.V4.Frontends.Lookup(&stranger, &v); err != nil {
		n.Fatalf("removed before the node was in sync: %v", err)
	}
	n.plane.Apply(context.Background(), dataplane.Change{InSync: true})
	if err := n.kernel.V4.Frontends.Lookup(&stranger, &v); err == nil {
		n.Fatal("still there although the node is in sync")
	}
	equal(n.T, "differences after restart", n.diff(), nil)
}

func (n *testNode) dump() {
	n.Helper()
	var list []string
	if err := n.plane.DumpMap("frontends_v4", func(d *agentv1.DumpMapResponse) error {
		list = append(list, d.GetKey())
		return nil
	}); err != nil || len(list) != 4 || !slices.Contains(list, "tcp 10.9.0.1:80") {
		n.Fatalf("dump %q, %v", list, err)
	}
	if err := n.plane.DumpMap("nope", nil); !errors.Is(err, dataplane.ErrNoMap) {
		n.Fatalf("dump of a map that is not: %v", err)
	}
	for _, m := range mapsOf(n) {
		if _, err := os.Lstat(m.GetPinPath()); err != nil {
			n.Errorf("map %s: %v", m.GetName(), err)
		}
	}
}

// TestPinsRemoved removes the pins under a running agent: it says so, and repair
// brings everything back, in such a way that the next agent adopts it.
func TestPinsRemoved(t *testing.T) {
	n := newNode(t)
	devices(t)
	n.give(true, cluster1()...)
	for name, remove := range map[string]func() error{
		"links":      func() error { return os.RemoveAll(filepath.Join(n.pins, "links")) },
		"everything": func() error { return mbpf.RemovePins(n.pins) },
	} {
		if err := remove(); err != nil {
			t.Fatal(err)
		}
		problems := n.plane.Refresh(context.Background()).Report.GetProblems()
		if len(problems) != 1 || !strings.Contains(problems[0], "are gone") || !strings.Contains(problems[0], "sock_") {
			t.Errorf("%s removed: problems %q", name, problems)
		}
		if got := n.diff(); len(got) < 2 {
			t.Errorf("%s removed: differences %q", name, got)
		}
		_, remaining, result, err := n.plane.Repair(context.Background())
		if err != nil || len(remaining) != 0 || len(result.Report.GetProblems()) != 0 {
			t.Fatalf("%s removed: remaining %v, problems %v, %v", name, remaining, result.Report.GetProblems(), err)
		}
		equal(t, "differences after repair", n.diff(), nil)
	}
	n.restart()
}

// TestBadResources gives resources that make no sense: each has an error that
// names it and its field, and the good one next to them is served.
func TestBadResources(t *testing.T) {
	n := newNode(t)
	bad := cluster1()
	bad[0].GetNodeConfig().NodePorts = &dataplanev1.PortRange{First: 29000, Last: 31000}
	broken := proto.Clone(bad[5]).(*dataplanev1.Resource)
	broken.Name.Key = "default/broken"
	broken.GetService().Name = "broken"
	broken.GetService().ClusterIps = [][]byte{{1, 2, 3}}
	broken.GetService().LoadBalancerIps = nil
	broken.GetService().Ports = []*dataplanev1.ServicePort{
		{Name: "a", Protocol: 6, Port: 70000}, {Name: "b", Protocol: 99, Port: 1}, {Name: "c", Protocol: 6, Port: 90},
	}
	strange := &dataplanev1.Resource{Name: name(77, "later"), Version: 1}
	mixed := &dataplanev1.Resource{Name: name(5, "default/mixed"), Version: 1, Content: &dataplanev1.Resource_Node{Node: &dataplanev1.Node{}}}
	result := n.give(true, append(bad, broken, strange, mixed)...)
	var got []string
	for _, e := range result.Errors {
		got = append(got, fmt.Sprintf("%s %s %s", held.NameOf(e.GetName()), e.GetReason(), e.GetField()))
	}
	equal(t, "errors", got, []string{
		"NODE_CONFIG n1 PORTS_OVERLAP node_ports",
		"ENDPOINT default/p1 DEVICE_NOT_FOUND addresses",
		"SERVICE default/broken INVALID ports[0].port",
		"SERVICE default/broken INVALID ports[1].protocol",
		"SERVICE default/broken INVALID cluster_ips[0]",
		"SERVICE default/mixed UNKNOWN_TYPE ",
		"type 77 later UNKNOWN_TYPE ",
	})
	if got := n.frontends(); !slices.Contains(got, wantFrontends[0]) {
		t.Fatalf("the good service is not served: %q", got)
	}
}

// TestDiffChangesNothing asks for differences while the fast path cannot be
// prepared: asking adds no problem.
func TestDiffChangesNothing(t *testing.T) {
	n := newNode(t)
	calls := 0
	n.plane.options.AllowFastPath = func() error { calls++; return errors.New("injected") }
	n.give(true, cluster1()...)
	calls = 0
	before := len(n.plane.problems)
	equal(t, "differences", n.diff(), []string{})
	if len(n.plane.problems) != before || before != 1 || calls != 0 {
		t.Fatalf("%d calls; problems %q", calls, n.plane.problems)
	}
}

// TestConnectedCount counts the sockets that are there, not the bytes that
// closed ones left.
func TestConnectedCount(t *testing.T) {
	n := newNode(t)
	left := layout.ConnectedV4{Peer: layout.SockPeerV4{FrontendAddr: layout.V4{10, 9, 0, 1}, Proto: 6}}
	used := left
	used.Cookie = 4711
	if err := errors.Join(n.kernel.V4.Connected.Put(uint32(7), &left), n.kernel.V4.Connected.Put(uint32(8), &used)); err != nil {
		t.Fatal(err)
	}
	for _, m := range mapsOf(n) {
		if m.GetName() == "connected_v4" && m.GetEntries() != 1 {
			t.Errorf("%d entries", m.GetEntries())
		}
	}
	var keys []string
	if err := n.plane.DumpMap("connected_v4", func(d *agentv1.DumpMapResponse) error {
		keys = append(keys, d.GetKey())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	equal(t, "dump", keys, []string{"8"})
}

// TestFirstSyncLooksForStaleUDP: an earlier agent may have ended before it ended
// the flows to backends that it removed.
func TestFirstSyncLooksForStaleUDP(t *testing.T) {
	n := newNode(t)
	n.give(false, cluster1()...)
	if len(n.plane.staleUDP) != 0 {
		t.Fatal("looked for before the node is in sync")
	}
	n.plane.Apply(context.Background(), dataplane.Change{InSync: true})
	if len(n.plane.staleUDP) != 1 {
		t.Fatal("not looked for")
	}
}
