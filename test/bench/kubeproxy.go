// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	var served, unserved []runtime.Object
	for _, node := range s.cluster.Nodes {
		served = append(served, node.Object())
	}
	for _, service := range dialled(s.cluster) {
		served = append(served, service.Objects()...)
	}
	for _, filler := range fillers(s.cluster, r.Family, s.services(r.Config)) {
		unserved = append(unserved, filler.Objects()...)
	}
	if err := errors.Join(plane.Preload(ctx, unserved...), plane.Apply(ctx, served...)); err != nil {
		return nil, errors.Join(fmt.Errorf("writing the objects: %w", err), plane.Stop())
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
	tools := filepath.Join(s.cluster.Dir, "iptables")
	if err := linkLegacyTools(tools); err != nil {
		return stop, err
	}
	for _, node := range s.cluster.Nodes[:2] {
		forward, err := o.plane.Forward(node.NetNS, apiServerAddress)
		if err != nil {
			return stop, err
		}
		undo = append(undo, forward.Close)
		process, err := node.Start("kube-proxy-"+node.Name, "env", "PATH="+tools+":"+os.Getenv("PATH"), program,
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
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
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

// linkLegacyTools makes a directory in which iptables is the variant on the
// kernel's own tables. The other one, on nftables, takes many minutes for the
// rules of 10,000 services.
func linkLegacyTools(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, tool := range []string{"", "-save", "-restore"} {
			program, err := exec.LookPath(family + "-legacy" + tool)
			if err != nil {
				return fmt.Errorf("kube-proxy needs it: %w", err)
			}
			if err := os.Symlink(program, filepath.Join(dir, family+tool)); err != nil {
				return fmt.Errorf("linking a tool: %w", err)
			}
		}
	}
	return nil
}
