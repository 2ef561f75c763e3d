// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/millrace-project/millrace/test/testbed"
)

// kind is a way to forward.
type kind int

const (
	bareNetwork kind = iota
	millrace
	kubeProxyNftables
	kubeProxyIptables
)

var kindNames = map[kind]string{
	bareNetwork: "bare network", millrace: "Millrace",
	kubeProxyNftables: "kube-proxy nftables", kubeProxyIptables: "kube-proxy iptables",
}

// system is one way to forward in a cluster of its own.
type system struct {
	// name on the command line.
	name string
	kind kind
	// large tells whether it has Config.Services services or smallServices.
	large   bool
	cluster *testbed.Cluster
}

// allSystems in the order a round measures them.
func allSystems() []*system {
	return []*system{
		{name: "bare", kind: bareNetwork},
		{name: "millrace", kind: millrace},
		{name: "millrace-large", kind: millrace, large: true},
		{name: "nftables", kind: kubeProxyNftables},
		{name: "nftables-large", kind: kubeProxyNftables, large: true},
		{name: "iptables", kind: kubeProxyIptables},
		{name: "iptables-large", kind: kubeProxyIptables, large: true},
	}
}

func systemNames() []string {
	var names []string
	for _, s := range allSystems() {
		names = append(names, s.name)
	}
	return names
}

// quickSystems are those that are up in seconds.
func quickSystems() []string {
	var names []string
	for _, s := range allSystems() {
		if !s.large || s.kind == millrace {
			names = append(names, s.name)
		}
	}
	return names
}

func (s *system) services(config Config) int {
	if s.large {
		return config.Services
	}
	return smallServices
}

// path is a way from a client to a server.
type path struct {
	name string
	// client and server are hosts of a cluster.
	client func(*testbed.Cluster) *testbed.Host
	server func(*testbed.Cluster) *testbed.Host
	// front is what clients dial where services are translated.
	front func(c *testbed.Cluster, family int) netip.AddrPort
}

// paths are those that are measured. The last one is longer than on the bare
// network, where the client dials the second node's pod without the detour over
// the first node.
var paths = []path{
	{
		name:   "ClusterIP same node",
		client: firstPod,
		server: func(c *testbed.Cluster) *testbed.Host { return &c.Nodes[0].Pods[1].Host },
		front:  clusterIP(sameNodeNumber),
	}, {
		name:   "ClusterIP other node",
		client: firstPod,
		server: func(c *testbed.Cluster) *testbed.Host { return &c.Nodes[1].Pods[0].Host },
		front:  clusterIP(otherNodeNumber),
	}, {
		name:   "NodePort same node",
		client: outside,
		server: func(c *testbed.Cluster) *testbed.Host { return &c.Nodes[0].Pods[1].Host },
		front:  nodePort(sameNodePort),
	}, {
		name:   "NodePort other node",
		client: outside,
		server: func(c *testbed.Cluster) *testbed.Host { return &c.Nodes[1].Pods[0].Host },
		front:  nodePort(otherNodePort),
	},
}

func firstPod(c *testbed.Cluster) *testbed.Host { return &c.Nodes[0].Pods[0].Host }
func outside(c *testbed.Cluster) *testbed.Host  { return c.Client }

func clusterIP(n int) func(*testbed.Cluster, int) netip.AddrPort {
	return func(_ *testbed.Cluster, family int) netip.AddrPort {
		return netip.AddrPortFrom(testbed.ServiceIP(family, n), 80)
	}
}

func nodePort(port uint16) func(*testbed.Cluster, int) netip.AddrPort {
	return func(c *testbed.Cluster, family int) netip.AddrPort {
		return netip.AddrPortFrom(c.Nodes[0].IP(family), port)
	}
}

// target is what a client of the system dials to take the path: the pod itself
// where nothing translates.
func (s *system) target(p path, family int) netip.AddrPort {
	if s.kind == bareNetwork {
		return netip.AddrPortFrom(p.server(s.cluster).IP(family), serverPort)
	}
	return p.front(s.cluster, family)
}

// fleet is a set of systems with what they share.
type fleet struct {
	systems []*system
	// undo is what takes the set-up back, latest last.
	undo []func() error
}

// startFleet brings up the selected systems, each with its servers running and
// its services programmed.
func startFleet(ctx context.Context, r *run) (*fleet, error) {
	f := &fleet{}
	for _, s := range allSystems() {
		if len(r.Peers) == 0 || slices.Contains(r.Peers, s.name) {
			f.systems = append(f.systems, s)
		}
	}
	if err := f.start(ctx, r); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

func (f *fleet) start(ctx context.Context, r *run) error {
	apiServers := map[bool]*objectStore{}
	for _, s := range f.systems {
		r.progress("setting up %s with %d services", kindNames[s.kind], s.services(r.Config))
		var err error
		switch s.kind {
		case bareNetwork, kubeProxyNftables, kubeProxyIptables:
			s.cluster, err = startCluster(s.name)
			if err == nil {
				f.undo = append(f.undo, s.cluster.Close)
			}
		case millrace:
			err = f.startMillrace(ctx, r, s)
		}
		if err != nil {
			return err
		}
		if s.kind == kubeProxyNftables || s.kind == kubeProxyIptables {
			if apiServers[s.large] == nil {
				store, err := startObjectStore(ctx, r, s)
				if err != nil {
					return err
				}
				f.undo = append(f.undo, store.plane.Stop)
				apiServers[s.large] = store
			}
			stop, err := apiServers[s.large].startKubeProxy(ctx, s)
			f.undo = append(f.undo, stop)
			if err != nil {
				return err
			}
		}
		if err := startServers(s.cluster); err != nil {
			return err
		}
	}
	return f.waitAnswers(ctx, r)
}

// waitAnswers waits until each system serves. A peer that does not is left out,
// and said so: the others can still be compared.
func (f *fleet) waitAnswers(ctx context.Context, r *run) error {
	var serving []*system
	for _, s := range f.systems {
		r.progress("waiting for %s with %d services to answer", kindNames[s.kind], s.services(r.Config))
		err := s.waitAnswers(ctx, r.Family)
		switch {
		case err == nil:
			serving = append(serving, s)
		case ctx.Err() != nil || s.kind == millrace || s.kind == bareNetwork:
			return err
		default:
			r.progress("LEFT OUT: %s does not serve: %v", s.name, err)
		}
	}
	f.systems = serving
	return nil
}

func (f *fleet) close() error {
	var all error
	for _, undo := range slices.Backward(f.undo) {
		all = errors.Join(all, undo())
	}
	return all
}

// startCluster builds a cluster. The client outside gets routes to the pods,
// for the bare network to be dialled by.
func startCluster(name string) (*testbed.Cluster, error) {
	cluster, err := testbed.Start(clusterOptions(name))
	if err != nil {
		return nil, err
	}
	if err := routeClient(cluster); err != nil {
		return nil, errors.Join(err, cluster.Close())
	}
	return cluster, nil
}

func clusterOptions(name string) testbed.Options {
	return testbed.Options{Name: "bench-" + name, Nodes: 3, PodsPerNode: 2}
}

func routeClient(cluster *testbed.Cluster) error {
	for _, node := range cluster.Nodes {
		if err := cluster.Client.AddRoute(node.PodCIDRv4, node.IPv4); err != nil {
			return err
		}
		if err := cluster.Client.AddRoute(node.PodCIDRv6, node.IPv6); err != nil {
			return err
		}
	}
	return nil
}

func startServers(cluster *testbed.Cluster) error {
	for _, p := range paths[:2] { // the other paths lead to the same ones
		if _, err := startServer(p.server(cluster)); err != nil {
			return err
		}
	}
	return nil
}

// startMillrace builds the system's cluster with Millrace.
func (f *fleet) startMillrace(ctx context.Context, r *run, s *system) error {
	stack, err := startStack(ctx, r, s.name, s.services(r.Config))
	if stack != nil {
		s.cluster = stack.Cluster
		f.undo = append(f.undo, stack.Close)
	}
	if err != nil {
		return err
	}
	return routeClient(s.cluster)
}
