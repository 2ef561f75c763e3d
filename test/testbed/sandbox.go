// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// AddSandbox makes a pod with no interface but loopback, for CNI plugins to give
// it one. It has no address until the caller sets those that they gave it.
func (c *Cluster) AddSandbox(node *Node, name string) (*Pod, error) {
	index := slices.Index(c.Nodes, node) + 1
	pod := c.planPod(node, index, 1)
	planned := c.planHost(name, 1)
	pod.Name, pod.NetNS, pod.Device = name, planned.NetNS, ""
	pod.Cgroup = pod.Cgroup + "-" + name
	pod.IPv4, pod.IPv6 = planned.IPv4, planned.IPv6
	if err := os.MkdirAll(pod.Cgroup, 0o755); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	if err := createNetNS(pod.NetNS); err != nil {
		return nil, err
	}
	return pod, pod.Do(func() error {
		if err := applySysctls(baseSysctls(c.Options.CongestionControl)); err != nil {
			return err
		}
		_, err := linkUp("lo")
		return err
	})
}

// RemoveSandbox ends what runs in a sandbox and removes it.
func (c *Cluster) RemoveSandbox(pod *Pod) error {
	err := killCgroup(pod.Cgroup)
	for _, name := range []string{pod.Name, pod.Name + "-bypass"} {
		err = errors.Join(err, c.endProber(name))
	}
	return errors.Join(err, removeNetNS(pod.NetNS), removeCgroup(pod.Cgroup))
}
