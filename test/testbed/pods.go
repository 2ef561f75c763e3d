// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
)

// AddPod starts another pod on a running cluster's node: its number is the
// lowest that is free. It has no manifest until ApplyNodes is called.
func (c *Cluster) AddPod(node *Node) (*Pod, error) {
	index := slices.Index(c.Nodes, node) + 1
	for k := 1; k <= MaxPodsPerNode; k++ {
		pod := c.planPod(node, index, k)
		if slices.ContainsFunc(node.Pods, func(other *Pod) bool { return other.Name == pod.Name }) {
			continue
		}
		if err := os.MkdirAll(pod.Cgroup, 0o755); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
		if err := c.buildPod(node, pod); err != nil {
			return nil, fmt.Errorf("%s: %w", pod.Name, err)
		}
		node.Pods = append(node.Pods, pod)
		return pod, nil
	}
	return nil, errors.New("the node is full")
}

// RemovePod ends a pod with its processes and its device. Its manifest stays
// until ApplyNodes is called.
func (c *Cluster) RemovePod(pod *Pod) error {
	if err := killCgroup(pod.Cgroup); err != nil {
		return err
	}
	node := c.NodeOf(pod)
	err := node.Do(func() error {
		link, err := netlink.LinkByName(pod.Device)
		if err != nil {
			return fmt.Errorf("find device %s: %w", pod.Device, err)
		}
		if err := netlink.LinkDel(link); err != nil {
			return fmt.Errorf("remove device %s: %w", pod.Device, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := removeNetNS(pod.NetNS); err != nil {
		return err
	}
	for _, name := range []string{pod.Name, pod.Name + "-bypass"} {
		if err := c.endProber(name); err != nil {
			return err
		}
	}
	node.Pods = slices.DeleteFunc(node.Pods, func(other *Pod) bool { return other == pod })
	return removeCgroup(pod.Cgroup)
}

// endProber ends a prober that is not in a cgroup of its host, and forgets it.
func (c *Cluster) endProber(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	prober := c.probes[name]
	if prober == nil {
		return nil
	}
	delete(c.probes, name)
	if err := prober.Process.Kill(); err != nil {
		return err
	}
	return os.Remove(c.probeSocket(name))
}
