// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Options tell what cluster to build.
type Options struct {
	// Name of the cluster: lower case letters, digits and dashes, at most
	// 20. Empty: a random one.
	Name string
	// Nodes and PodsPerNode are the size; 3 and 2 if zero.
	Nodes, PodsPerNode int
	// MTU of all devices; 1500 if zero.
	MTU int
	// CongestionControl of TCP in every namespace; reno if empty, which alone
	// every kernel allows namespaces to choose.
	CongestionControl string
	// Masquerade makes each node translate what its pods send out of the
	// cluster, by nft rules such as CNI plugins install.
	Masquerade bool
	// Uplink of nodes, and PodDevice of pods: veth pairs if empty.
	Uplink    Uplink
	PodDevice PodDevice
	// AgentArgs are added to the command lines of a Stack's agents.
	AgentArgs []string
	// AgentUnder is the beginning of a command line that runs a Stack's agents.
	AgentUnder []string
}

// Cluster is a running cluster.
type Cluster struct {
	// Options it was built with.
	Options Options
	// Dir is its state directory.
	Dir string
	// Cgroup is the cgroup that contains all others of the cluster.
	Cgroup string
	// Switch joins everything; its addresses are the default gateway.
	Switch *Host
	// Control is where the control plane runs.
	Control *Host
	// Client is the external client. It has no route to pods.
	Client *Host
	// Nodes of the cluster.
	Nodes []*Node

	lock      *os.File
	mu        sync.Mutex
	processes []*Process
	probes    map[string]*Prober
}

// Start builds a cluster. Clusters whose builder is gone are removed first.
func Start(options Options) (*Cluster, error) {
	if err := Supported(); err != nil {
		return nil, err
	}
	if err := options.complete(); err != nil {
		return nil, err
	}
	root, err := CgroupRoot()
	if err != nil {
		return nil, err
	}
	lock, err := claim(options.Name)
	if err != nil {
		return nil, err
	}
	cluster := plan(options, root)
	cluster.lock = lock
	if err := cluster.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("build cluster %s: %w", options.Name, err), cluster.Close())
	}
	return cluster, nil
}

// Supported tells why clusters cannot be built here, nil if they can.
func Supported() error {
	if os.Geteuid() != 0 {
		return errors.New("clusters of network namespaces need root")
	}
	_, err := CgroupRoot()
	return err
}

func (o *Options) complete() error {
	if o.Name == "" {
		var random [4]byte
		if _, err := rand.Read(random[:]); err != nil {
			return err
		}
		o.Name = "test-" + hex.EncodeToString(random[:])
	}
	if !validName.MatchString(o.Name) {
		return fmt.Errorf("cluster name %q: must be 1 to 20 lower case letters, digits and dashes", o.Name)
	}
	setDefault(&o.Nodes, 3)
	setDefault(&o.PodsPerNode, 2)
	setDefault(&o.MTU, 1500)
	setDefault(&o.CongestionControl, "reno")
	if o.Nodes > MaxNodes || o.PodsPerNode > MaxPodsPerNode {
		return fmt.Errorf("at most %d nodes with %d pods each", MaxNodes, MaxPodsPerNode)
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// plan names everything and builds nothing.
func plan(options Options, cgroupRoot string) *Cluster {
	c := &Cluster{
		Options: options,
		Dir:     clusterDir(options.Name),
		Cgroup:  filepath.Join(cgroupRoot, dirPrefix+options.Name),
		probes:  map[string]*Prober{},
	}
	c.Switch = c.planHost("switch", switchNumber)
	c.Control = c.planHost("control", controlNumber)
	c.Client = c.planHost("client", clientNumber)
	for i := 1; i <= options.Nodes; i++ {
		name := fmt.Sprintf("node-%d", i)
		node := &Node{Host: *c.planHost(name, firstNodeNumber+i-1)}
		node.NodeCgroup = node.Cgroup
		node.Cgroup = filepath.Join(node.NodeCgroup, "host")
		node.PodCIDRv4, node.PodCIDRv6 = podCIDRs(i)
		node.BPFDir = filepath.Join(c.bpfDir(), name)
		node.StateDir = filepath.Join(c.Dir, name)
		node.Socket = filepath.Join(c.Dir, name+".sock")
		for k := 1; k <= options.PodsPerNode; k++ {
			node.Pods = append(node.Pods, c.planPod(node, i, k))
		}
		c.Nodes = append(c.Nodes, node)
	}
	return c
}

func (c *Cluster) planHost(name string, number int) *Host {
	host := &Host{Name: name, cluster: c, NetNS: c.netnsPath(name), Cgroup: filepath.Join(c.Cgroup, name)}
	host.IPv4, host.IPv6 = underlayAddrs(number)
	return host
}

// planPod names the k-th pod of the i-th node.
func (c *Cluster) planPod(node *Node, i, k int) *Pod {
	name := fmt.Sprintf("pod-%d-%d", i, k)
	number := firstPodNumber + k - 1
	return &Pod{
		NodeName: node.Name, Device: fmt.Sprintf("veth-%d-%d", i, k),
		Host: Host{
			Name: name, cluster: c, NetNS: c.netnsPath(name),
			IPv4: nth(node.PodCIDRv4.Addr(), number), IPv6: nth(node.PodCIDRv6.Addr(), number),
			Cgroup: filepath.Join(node.NodeCgroup, "pods", name),
		},
	}
}

func (c *Cluster) build() error {
	if err := c.makeDirs(); err != nil {
		return err
	}
	if err := c.save(false); err != nil {
		return err
	}
	if err := unix.Mount("bpf", c.bpfDir(), "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount BPF file system: %w", err)
	}
	for _, node := range c.Nodes {
		if err := os.Mkdir(node.BPFDir, 0o700); err != nil {
			return fmt.Errorf("make pin directory: %w", err)
		}
	}
	if err := c.buildSwitch(); err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	for _, host := range []*Host{c.Control, c.Client} {
		if err := c.buildHost(host, UplinkVeth); err != nil {
			return fmt.Errorf("%s: %w", host.Name, err)
		}
	}
	for _, node := range c.Nodes {
		if err := c.buildHost(&node.Host, c.Options.Uplink, nodeSysctls...); err != nil {
			return fmt.Errorf("%s: %w", node.Name, err)
		}
		for _, pod := range node.Pods {
			if err := c.buildPod(node, pod); err != nil {
				return fmt.Errorf("%s: %w", pod.Name, err)
			}
		}
		if c.Options.Masquerade {
			if err := node.masquerade(); err != nil {
				return err
			}
		}
	}
	if err := c.routePods(); err != nil {
		return err
	}
	first := c.Nodes[0]
	if err := c.Client.AddRoute(ExternalCIDRv4, first.IPv4); err != nil {
		return err
	}
	return c.Client.AddRoute(ExternalCIDRv6, first.IPv6)
}

// Pods are all pods of the cluster.
func (c *Cluster) Pods() []*Pod {
	var pods []*Pod
	for _, node := range c.Nodes {
		pods = append(pods, node.Pods...)
	}
	return pods
}

// Hosts are all hosts of the cluster but the switch.
func (c *Cluster) Hosts() []*Host {
	hosts := []*Host{c.Control, c.Client}
	for _, node := range c.Nodes {
		hosts = append(hosts, &node.Host)
		for _, pod := range node.Pods {
			hosts = append(hosts, &pod.Host)
		}
	}
	return hosts
}

// NodeOf is the node of a pod.
func (c *Cluster) NodeOf(pod *Pod) *Node {
	for _, node := range c.Nodes {
		if node.Name == pod.NodeName {
			return node
		}
	}
	return nil
}

// track remembers a started process, so that Close ends it in order.
func (c *Cluster) track(process *Process, err error) (*Process, error) {
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.processes = append(c.processes, process)
	return process, nil
}

// Processes are those that were started on the cluster's hosts and have not
// ended.
func (c *Cluster) Processes() []*Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	running := c.processes[:0]
	for _, process := range c.processes {
		if process.Running() == nil {
			running = append(running, process)
		}
	}
	c.processes = running
	return append([]*Process(nil), running...)
}
