// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/interfaces"
	"github.com/millrace-project/millrace/agent/internal/netnstest"
	mbpf "github.com/millrace-project/millrace/bpf"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// cgroup makes a cgroup without processes.
func cgroup(t *testing.T) string {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		path := filepath.Join(root, fmt.Sprintf("millrace-agent-test-%d", os.Getpid()))
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(path) }) //nolint:errcheck // nothing is in it
		return path
	}
	t.Skip("there is no cgroup v2 hierarchy at /sys/fs/cgroup or below")
	return ""
}

// node is a node of the test: a store, pins, and a plane over them.
type testNode struct {
	*testing.T
	store  *held.Store
	sizes  mbpf.Options
	pins   string
	cgroup string
	kernel *mbpf.Dataplane
	system *System
	plane  *Plane
}

func newNode(t *testing.T) *testNode {
	t.Helper()
	return newNodeOf(t, mbpf.Options{MaxFrontends: 1024, MaxBackends: 1024, MaxEstablished: 1024, MaxEmbryonic: 1024})
}

// newNodeOf makes a node with tables of these sizes.
func newNodeOf(t *testing.T, sizes mbpf.Options) *testNode {
	t.Helper()
	netnstest.NeedsRoot(t, "it loads BPF programs")
	fs := t.TempDir()
	if err := unix.Mount("millrace-test", fs, "bpf", 0, ""); err != nil {
		t.Fatalf("mount BPF filesystem: %v", err)
	}
	n := &testNode{T: t, store: held.New(), sizes: sizes, pins: filepath.Join(fs, "node"), cgroup: cgroup(t)}
	t.Cleanup(func() {
		if n.kernel != nil {
			n.kernel.Close()
		}
		if err := mbpf.RemovePins(n.pins); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if err := unix.Unmount(fs, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	n.start()
	return n
}

// start makes a plane as a starting agent does.
func (n *testNode) start() {
	n.Helper()
	if n.kernel != nil {
		n.kernel.Close()
	}
	options := n.sizes
	options.PinPath = n.pins
	var err error
	n.kernel, err = mbpf.Open(options)
	if err != nil {
		n.Fatal(err)
	}
	classifier, err := interfaces.NewClassifier(nil)
	if err != nil {
		n.Fatal(err)
	}
	n.system = NewSystem(n.kernel, n.pins, n.cgroup)
	n.plane, err = New(Options{Node: "n1", SNATPorts: PortRange{20000, 29999}, FastPath: true, HostNetnsCookie: 9},
		n.store, n.system, tables.NewKernel(n.kernel), classifier, n.system.Conntrack(), zap.NewNop())
	if err != nil {
		n.Fatal(err)
	}
	if err := n.system.AttachCgroup(); err != nil {
		n.Fatal(err)
	}
}

// give applies resources as a batch.
func (n *testNode) give(inSync bool, resources ...*dataplanev1.Resource) dataplane.Result {
	n.Helper()
	b := held.NewBatch()
	for _, r := range resources {
		name, entry, err := held.FromProto(r)
		if err != nil {
			n.Fatal(err)
		}
		b.Upsert(name, entry)
	}
	n.store.Apply(b)
	return n.plane.Apply(context.Background(), dataplane.Change{Names: b.Names(), InSync: inSync})
}

func name(t dataplanev1.ResourceType, key string) *dataplanev1.ResourceName {
	return &dataplanev1.ResourceName{Type: t, Key: key}
}

func ip(s string) []byte {
	if a := net.ParseIP(s).To4(); a != nil {
		return a
	}
	return net.ParseIP(s)
}

func cluster1() []*dataplanev1.Resource {
	return []*dataplanev1.Resource{
		{Name: name(1, "n1"), Version: 1, Content: &dataplanev1.Resource_NodeConfig{NodeConfig: &dataplanev1.NodeConfig{
			NodeName: "n1", NodePorts: &dataplanev1.PortRange{First: 30000, Last: 32767}}}},
		{Name: name(2, "n1"), Version: 1, Content: &dataplanev1.Resource_Node{Node: &dataplanev1.Node{Name: "n1",
			InternalAddresses: [][]byte{ip("192.168.9.2"), ip("2001:db8::2")},
			PodCidrs:          []*dataplanev1.Prefix{{Address: ip("10.1.0.0"), Length: 24}}}}},
		{Name: name(2, "n2"), Version: 1, Content: &dataplanev1.Resource_Node{Node: &dataplanev1.Node{Name: "n2",
			InternalAddresses: [][]byte{ip("192.168.9.3")}, PodCidrs: []*dataplanev1.Prefix{{Address: ip("10.1.1.0"), Length: 24}}}}},
		{Name: name(3, "default/p1"), Version: 1, Content: &dataplanev1.Resource_Endpoint{Endpoint: &dataplanev1.Endpoint{
			Namespace: "default", Name: "p1", Addresses: [][]byte{ip("10.1.0.5")}}}},
		{Name: name(4, "default/web/0"), Version: 1, Content: &dataplanev1.Resource_BackendSlice{BackendSlice: &dataplanev1.BackendSlice{
			Namespace: "default", Name: "web",
			PortSets: []*dataplanev1.PortSet{{Ports: []*dataplanev1.TargetPort{{Name: "http", Protocol: 6, Port: 8080}}}},
			Backends: []*dataplanev1.Backend{
				{Address: ip("10.1.0.5"), Node: "n1", Ready: true, Serving: true},
				{Address: ip("192.168.9.3"), Node: "n2", Ready: true, Serving: true},
				{Address: ip("10.1.1.7"), Node: "n2", Serving: true, Terminating: true},
			}}}},
		{Name: name(5, "default/web"), Version: 1, Content: &dataplanev1.Resource_Service{Service: &dataplanev1.Service{
			Namespace: "default", Name: "web", ClusterIps: [][]byte{ip("10.9.0.1"), ip("fd09::1")}, BackendSlices: 1,
			LoadBalancerIps: []*dataplanev1.ServiceAddress{{Address: ip("203.0.113.1"), Ports: []uint32{0}}},
			Ports:           []*dataplanev1.ServicePort{{Name: "http", Protocol: 6, Port: 80, NodePort: 30080}}}}},
	}
}

// devices makes a pod's device and an uplink.
func devices(t *testing.T) {
	t.Helper()
	for _, name := range []string{"pod1", "up0"} {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-x"}); err != nil {
			t.Fatal(err)
		}
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { netlink.LinkDel(l) }) //nolint:errcheck // goes with the namespace
		peer, err := netlink.LinkByName(name + "-x")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(netlink.LinkSetUp(l), netlink.LinkSetUp(peer)); err != nil {
			t.Fatal(err)
		}
		if name == "up0" {
			a, _ := netlink.ParseAddr("192.168.9.2/24")
			err = netlink.AddrAdd(l, a)
		} else {
			_, dst, _ := net.ParseCIDR("10.1.0.5/32")
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (n *testNode) frontends() []string {
	n.Helper()
	var list []string
	err := n.plane.Services("", "", func(s *agentv1.ListServicesResponse) error {
		for _, f := range s.GetFrontends() {
			var backends []string
			for _, b := range f.GetBackends() {
				backends = append(backends, fmt.Sprintf("%s:%d@%s/%v", b.GetAddress(), b.GetPort(), b.GetNode(), b.GetLocal()))
			}
			list = append(list, fmt.Sprintf("%s %s:%d %s", f.GetKind(), f.GetAddress(), f.GetPort(), strings.Join(backends, ",")))
		}
		return nil
	})
	if err != nil {
		n.Fatal(err)
	}
	return list
}

func (n *testNode) diff() []string {
	n.Helper()
	var list []string
	at := func(f func()) error { f(); return nil }
	if err := n.plane.Diff(at, func(d *agentv1.DiffDesiredResponse) error {
		list = append(list, d.GetObject()+" "+d.GetKey())
		return nil
	}); err != nil {
		n.Fatal(err)
	}
	return list
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
