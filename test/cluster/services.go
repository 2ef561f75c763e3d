// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/millrace-project/millrace/test/cluster/node"
)

// Where Debian's containernetworking-plugins has the plugins, and where nodes
// have them, as most distributions of Kubernetes do.
const (
	debianPlugins = "/usr/lib/cni"
	pluginDir     = "/opt/cni/bin"
	networkDir    = "/etc/cni/net.d"
)

const containerdSocket = "/run/containerd/containerd.sock"

// services are what runs on a node beside pods.
func (n *Node) services() []node.Service {
	addresses := n.Addresses()
	ips := make([]string, len(addresses))
	for i, a := range addresses {
		ips[i] = a.String()
	}
	all := []node.Service{
		{Name: "containerd", Args: []string{"/usr/bin/containerd", "--config=/etc/containerd/config.toml"}},
		{Name: "kubelet", Args: []string{
			node.ProgramDir + "/kubelet",
			"--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
			"--hostname-override=" + n.Name, "--node-ip=" + strings.Join(ips, ","),
		}},
	}
	if n.cluster.opts.Proxy != Millrace {
		all = append(all, node.Service{Name: "kube-proxy", Args: []string{
			node.ProgramDir + "/kube-proxy", "--config=/etc/kubernetes/kube-proxy.yaml",
		}})
	}
	return all
}

// configure writes what the services read.
func (n *Node) configure() error {
	conflist, err := n.conflist()
	if err != nil {
		return err
	}
	c := n.cluster
	ca, err := os.ReadFile(c.path("pki", "ca.crt"))
	if err != nil {
		return err
	}
	files := map[string]string{
		"etc/kubernetes/ca.crt":       string(ca),
		"etc/kubernetes/kubelet.yaml": fmt.Sprintf(kubeletConfig, dnsAddress(c.opts.Family)),
		"etc/containerd/config.toml":  containerdConfig,
		// Nobody answers there, at once: the cluster has no outside.
		"etc/resolv.conf": fmt.Sprintf("nameserver %s\n", c.ControlPlaneAddress()),
		"etc/hosts":       fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n", n.Addresses()[0], n.Name),
		"etc/hostname":    n.Name + "\n",
		"etc/machine-id":  fmt.Sprintf("%032x\n", n.number),
		filepath.Join(networkDir, "10-"+c.opts.CNI+".conflist"): conflist,
	}
	if c.opts.Proxy != Millrace {
		files["etc/kubernetes/kube-proxy.yaml"] = fmt.Sprintf(kubeProxyConfig, c.opts.Proxy, n.Name, clusterCIDR(c.opts.Family))
	}
	for name, content := range files {
		path := n.file(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return n.copyPlugins()
}

// copyPlugins gives the node CNI plugins in a directory of its own.
func (n *Node) copyPlugins() error {
	dir := n.file(pluginDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"bridge", "host-local", "loopback", "portmap", "ptp"} {
		if err := copyFile(filepath.Join(debianPlugins, name), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("copying the CNI plugin %s (Debian package containernetworking-plugins): %w", name, err)
		}
	}
	return nil
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// conflist is the node's CNI configuration.
func (n *Node) conflist() (string, error) {
	type object = map[string]any
	var ranges []any
	routes := []any{}
	for _, cidr := range n.PodCIDRs() {
		ranges = append(ranges, []any{object{"subnet": cidr.String()}})
		all := "0.0.0.0/0"
		if cidr.Addr().Is6() {
			all = "::/0"
		}
		routes = append(routes, object{"dst": all})
	}
	main := object{"type": n.cluster.opts.CNI, "ipam": object{"type": "host-local", "ranges": ranges, "routes": routes}}
	if n.cluster.opts.CNI == Bridge {
		main["bridge"], main["isGateway"], main["hairpinMode"] = "cni0", true, true
	}
	data, err := json.MarshalIndent(object{
		"cniVersion": "1.0.0", "name": n.cluster.opts.CNI,
		"plugins": []any{main, object{"type": "portmap", "capabilities": object{"portMappings": true}}},
	}, "", "  ")
	return string(data), err
}

// dnsAddress is the cluster IP of the DNS Service: the tenth of the range.
func dnsAddress(f Family) netip.Addr {
	cidr := f.of(serviceCIDRs)[0]
	bytes := cidr.Addr().AsSlice()
	bytes[len(bytes)-1] = 10
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

func clusterCIDR(f Family) string {
	var all []string
	for _, p := range f.of(podCIDRs) {
		all = append(all, p.String())
	}
	return strings.Join(all, ",")
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /etc/kubernetes/ca.crt}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
clusterDNS: [%q]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://` + containerdSocket + `
resolvConf: /etc/resolv.conf
# The machine lets nobody lower it.
oomScoreAdj: 0
# The machine's disk is not the node's own.
localStorageCapacityIsolation: false
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%", imagefs.inodesFree: "0%%", pid.available: "0%%"}
imageGCHighThresholdPercent: 100
# What tests wait for comes sooner than by default.
syncFrequency: 10s
serializeImagePulls: false
registryPullQPS: 0
eventRecordQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
`

const containerdConfig = `version = 2
[grpc]
  address = "` + containerdSocket + `"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  # Lowering a score needs CAP_SYS_RESOURCE, which the machine may not have.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "` + pluginDir + `"
    conf_dir = "` + networkDir + `"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
`

const kubeProxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: %s
clusterCIDR: %q
clientConnection: {kubeconfig: /etc/kubernetes/kube-proxy.kubeconfig}
metricsBindAddress: 127.0.0.1:10249
# A network namespace cannot set its size.
conntrack: {maxPerCore: 0}
`
