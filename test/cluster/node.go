// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/test/cluster/cgroups"
	"github.com/millrace-project/millrace/test/cluster/node"
	"github.com/millrace-project/millrace/test/kube/controlplane"
	"github.com/millrace-project/millrace/test/testbed"
)

// Node is a node of a cluster.
type Node struct {
	// Name is that of the Node object.
	Name    string
	number  int
	cluster *Cluster
}

var nodeName = regexp.MustCompile(`^node-[1-9]$`)

// NodeCommand is the first argument that makes millrace-cluster run a node
// whose spec is the second.
const NodeCommand = "node"

func newNode(c *Cluster, number int) *Node {
	return &Node{Name: fmt.Sprintf("node-%d", number), number: number, cluster: c}
}

// controlPlane tells whether the node has that role: the first two do.
func (n *Node) controlPlane() bool { return n.number <= 2 }

func (n *Node) hostNumber() int { return 10 + n.number }

// Addresses returns the node's addresses, one a family.
func (n *Node) Addresses() []netip.Addr {
	var all []netip.Addr
	for _, p := range n.cluster.hostAddresses(n.hostNumber()) {
		all = append(all, p.Addr())
	}
	return all
}

// PodCIDRs returns where the addresses of the node's pods are from.
func (n *Node) PodCIDRs() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range n.cluster.opts.Family.of(podCIDRs) {
		all = append(all, podCIDR(p, n.number))
	}
	return all
}

func (n *Node) spec() (*node.Spec, error) {
	programs, err := controlplane.BinDir()
	if err != nil {
		return nil, err
	}
	return &node.Spec{
		Name:     n.Name,
		NetNS:    n.cluster.netns(n.Name),
		Cgroup:   n.cluster.cgroup(n.Name),
		Dir:      n.cluster.path(n.Name),
		Programs: programs,
		Services: n.services(),
	}, nil
}

// file is the place on the machine of a file of the node, except of those on
// filesystems that the node mounts.
func (n *Node) file(name string) string {
	return n.cluster.path(n.Name, "root", name)
}

// Start starts the node for the first time, or again after Stop.
func (n *Node) Start() error {
	spec, err := n.spec()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(spec.Dir, 0o755); err != nil {
		return err
	}
	path, err := spec.Write()
	if err != nil {
		return err
	}
	helper, err := n.cluster.helper()
	if err != nil {
		return err
	}
	return n.cluster.startProcess(n.Name, "", helper, NodeCommand, path)
}

// Stop ends the node as a loss of power does: all processes at once. Its
// directory, network namespace and routes stay.
func (n *Node) Stop(ctx context.Context) error {
	// Containers' cgroups would be taken for those of pods that run, so they go
	// with the processes.
	return cgroups.Remove(ctx, n.cluster.cgroup(n.Name))
}

// Command returns a command that runs on the node: in its namespaces, in its
// cgroup, with its files.
func (n *Node) Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	pid, err := n.initPID()
	if err != nil {
		return nil, err
	}
	helper, err := n.cluster.helper()
	if err != nil {
		return nil, err
	}
	all := append([]string{JoinCommand, n.cluster.cgroup(n.Name), "",
		"nsenter", "-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p", "-C", "--"}, args...)
	return exec.CommandContext(ctx, helper, all...), nil
}

// Exec runs a command on the node and returns what it printed. The error of a
// failure holds what it complained of.
func (n *Node) Exec(ctx context.Context, args ...string) (string, error) {
	cmd, err := n.Command(ctx, args...)
	if err != nil {
		return "", err
	}
	out, err := output(cmd)
	if err != nil {
		return out, fmt.Errorf("on %s: %w", n.Name, err)
	}
	return out, nil
}

// Kill ends one of the node's services, kubelet or containerd, with SIGKILL; it
// is started again a second later.
func (n *Node) Kill(ctx context.Context, service string) error {
	pid, err := n.ServicePID(service)
	if err != nil {
		return err
	}
	if pid == 0 {
		return fmt.Errorf("%s of %s does not run", service, n.Name)
	}
	_, err = n.Exec(ctx, "kill", "-9", strconv.Itoa(pid))
	return err
}

// ServicePID returns the process of one of the node's services, as the node
// numbers it, or zero while it does not run.
func (n *Node) ServicePID(service string) (int, error) {
	root, err := n.initPID()
	if err != nil {
		return 0, err
	}
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(root), "root", node.ServiceDir, service))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(data))
}

// initPID finds the first process of the node.
func (n *Node) initPID() (int, error) {
	members, err := cgroups.Processes(n.cluster.cgroup(n.Name))
	if err != nil {
		return 0, err
	}
	// In a PID namespace below the machine's there is one process 1; those of
	// pods are one level deeper.
	for _, pid := range members {
		status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if value, ok := strings.CutPrefix(line, "NSpid:"); ok {
				fields := strings.Fields(value)
				if len(fields) == 2 && fields[1] == "1" {
					return pid, nil
				}
			}
		}
	}
	return 0, fmt.Errorf("%s does not run; its last lines:\n%s", n.Name, testbed.Tail(n.cluster.logFile(n.Name), 10))
}

// startNodes writes the nodes' configuration and objects and starts them.
func (c *Cluster) startNodes(ctx context.Context, store string) error {
	client, err := c.Clientset()
	if err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := n.configure(); err != nil {
			return fmt.Errorf("configuring %s: %w", n.Name, err)
		}
		if err := copyStore(ctx, store, c.path(n.Name, "containerd")); err != nil {
			return fmt.Errorf("giving %s its images: %w", n.Name, err)
		}
		// kubelets may neither choose pod CIDRs nor roles.
		object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{
			corev1.LabelHostname: n.Name,
		}}}
		if n.controlPlane() {
			object.Labels["node-role.kubernetes.io/control-plane"] = ""
		}
		for _, cidr := range n.PodCIDRs() {
			object.Spec.PodCIDRs = append(object.Spec.PodCIDRs, cidr.String())
		}
		object.Spec.PodCIDR = object.Spec.PodCIDRs[0]
		if _, err := client.CoreV1().Nodes().Create(ctx, object, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("creating the Node %s: %w", n.Name, err)
		}
		if err := n.Start(); err != nil {
			return fmt.Errorf("starting %s: %w", n.Name, err)
		}
	}
	for _, n := range c.nodes {
		err := wait(ctx, "containerd of "+n.Name, func() error {
			_, err := n.Exec(ctx, "ctr", "version")
			return err
		})
		if err != nil {
			return fmt.Errorf("%w; its last lines:\n%s", err, testbed.Tail(n.file("var/log/containerd.log"), 20))
		}
	}
	return nil
}

// ready is nil if the Node object says so.
func ready(n *corev1.Node) error {
	i := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	switch {
	case i < 0:
		return errors.New("node " + n.Name + " has not reported yet")
	case n.Status.Conditions[i].Status != corev1.ConditionTrue:
		return fmt.Errorf("node %s is not ready: %s", n.Name, n.Status.Conditions[i].Message)
	}
	return nil
}
