// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/millrace-project/millrace/test/bench/loadgen"
	"github.com/millrace-project/millrace/test/kube/controlplane"
	"github.com/millrace-project/millrace/test/testbed"
)

// apiServerAddress is where kube-proxy finds the API server in its node's
// namespace.
const apiServerAddress = "127.0.0.1:6443"

// objectStore is an API server with the objects of one size of cluster. All
// clusters have the same addresses, so that one API server does for all
// clusters of a size.
type objectStore struct {
	plane *controlplane.ControlPlane
}

// startObjectStore starts an API server and writes the objects of the system's
// cluster to it.
func startObjectStore(ctx context.Context, r *run, s *system) (*objectStore, error) {
	plane, err := controlplane.Start(ctx, controlplane.Options{})
	if err != nil {
		return nil, err
	}
	var nodes, services, slices []runtime.Object
	for _, node := range s.cluster.Nodes {
		nodes = append(nodes, node.Object())
	}
	all := append(dialled(s.cluster), fillers(s.cluster, r.Family, s.services(r.Config))...)
	for _, service := range all {
		objects := service.Objects()
		services, slices = append(services, objects[0]), append(slices, objects[1:]...)
	}
	for _, objects := range [][]runtime.Object{nodes, slices, services} {
		if err := plane.Apply(ctx, objects...); err != nil {
			return nil, errors.Join(fmt.Errorf("writing %d services: %w", len(all), err), plane.Stop())
		}
	}
	return &objectStore{plane: plane}, nil
}

// startKubeProxy runs a kube-proxy on each node that the paths lead over. The
// function it returns undoes what it did, also after an error.
func (o *objectStore) startKubeProxy(ctx context.Context, s *system) (func() error, error) {
	var undo []func() error
	stop := func() error {
		var all error
		for _, f := range undo {
			all = errors.Join(all, f())
		}
		return all
	}
	program, err := controlplane.Binary("kube-proxy")
	if err != nil {
		return stop, err
	}
	config, err := o.plane.Kubeconfig(apiServerAddress, "system:kube-proxy")
	if err != nil {
		return stop, err
	}
	mode := map[kind]string{kubeProxyNftables: "nftables", kubeProxyIptables: "iptables"}[s.kind]
	for _, node := range s.cluster.Nodes[:2] {
		forward, err := o.plane.Forward(node.NetNS, apiServerAddress)
		if err != nil {
			return stop, err
		}
		undo = append(undo, forward.Close)
		process, err := node.Start("kube-proxy-"+node.Name, program,
			"--proxy-mode="+mode, "--kubeconfig="+config, "--hostname-override="+node.Name,
			"--cluster-cidr="+testbed.ClusterCIDRv4.String()+","+testbed.ClusterCIDRv6.String(),
			// These settings belong to the machine, not to a namespace.
			"--conntrack-max-per-core=0", "--conntrack-min=0",
			"--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
			"--kube-api-qps=1000", "--kube-api-burst=1000",
			// Periodic cleaning up would fall into one round and not the other.
			"--iptables-sync-period=1h",
			"--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249",
		)
		if err != nil {
			return stop, err
		}
		undo = append([]func() error{process.Stop}, undo...)
	}
	return stop, nil
}

// waitAnswers waits until every path of the system leads to a server.
func (s *system) waitAnswers(ctx context.Context, family int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for _, p := range paths {
		load := loadgen.Load{Mode: loadgen.ModeConnect, Target: s.target(p, family), Connections: 1, Duration: time.Millisecond}
		err := testbed.Eventually(ctx, func() error {
			for _, process := range s.cluster.Processes() {
				if err := process.Running(); err != nil {
					return err
				}
			}
			_, err := runLoad(p.client(s.cluster), load)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s, %s: %w", s.name, p.name, err)
		}
	}
	return nil
}
