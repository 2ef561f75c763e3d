// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/millrace-project/millrace/test/certs"
	"github.com/millrace-project/millrace/test/kube/controlplane"
	"github.com/millrace-project/millrace/test/testbed"
)

// Names of the control plane's processes.
const (
	etcdName      = "etcd"
	apiServerName = "kube-apiserver"
	relayName     = "relay"
)

// apiServerPort is where the API server listens.
const apiServerPort = 6443

// RelayCommand is the first argument that makes millrace-cluster relay from a
// port of the machine's loopback to an address inside a network namespace.
const RelayCommand = "relay"

// startControlPlane starts etcd, the API server, controllers and the scheduler,
// and a relay that makes the API server reachable from the machine.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := c.writeCredentials(); err != nil {
		return err
	}
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	netns := c.netns(controlPlanePart)
	helper, err := c.helper()
	if err != nil {
		return err
	}
	if err := c.startProcess(relayName, "", helper, RelayCommand, c.outside(), netns, c.inside()); err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	for _, p := range []struct {
		name string
		args []string
	}{
		{"kube-controller-manager", []string{
			"--use-service-account-credentials=true",
			"--service-account-private-key-file=" + c.path("pki", "sa.key"),
			"--root-ca-file=" + c.path("pki", "ca.crt"),
			// Nodes get their pod CIDRs with their objects.
			"--allocate-node-cidrs=false",
		}},
		{"kube-scheduler", nil},
	} {
		program, err := controlplane.Binary(p.name)
		if err != nil {
			return err
		}
		kubeconfig := c.path("pki", p.name+".kubeconfig")
		args := append([]string{program, "--kubeconfig=" + kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1",
			"--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig}, p.args...)
		if err := c.startProcess(p.name, netns, args...); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	program, err := controlplane.Binary("etcd")
	if err != nil {
		return err
	}
	return c.startProcess(etcdName, c.netns(controlPlanePart), program,
		"--data-dir="+c.path("etcd"), "--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level=warn")
}

// StartAPIServer starts the API server and returns when it is ready. Only after
// StopAPIServer is there a reason to call it.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	program, err := controlplane.Binary("kube-apiserver")
	if err != nil {
		return err
	}
	bind := "0.0.0.0"
	if c.opts.Family != IPv4 {
		bind = "::"
	}
	args := append(controlplane.APIServerArgs(c.path("pki"), c.opts.Family.of(serviceCIDRs)),
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address="+bind,
		"--advertise-address="+c.ControlPlaneAddress().String(),
		fmt.Sprintf("--secure-port=%d", apiServerPort),
		"--kubelet-client-certificate="+c.path("pki", "kubelet-client.crt"), "--kubelet-client-key="+c.path("pki", "kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
	)
	if err := c.startProcess(apiServerName, c.netns(controlPlanePart), append([]string{program}, args...)...); err != nil {
		return err
	}
	client, err := c.Clientset()
	if err != nil {
		return err
	}
	return wait(ctx, "the API server", func() error {
		if c.pid(apiServerName) == 0 {
			return fmt.Errorf("it ended; its last lines:\n%s", testbed.Tail(c.logFile(apiServerName), 20))
		}
		return controlplane.Ready(ctx, client)
	})
}

// StopAPIServer ends the API server and waits until it is gone; etcd and what
// it holds stay.
func (c *Cluster) StopAPIServer(ctx context.Context) error {
	return c.stopProcess(ctx, apiServerName, 2*time.Second)
}

// Clientset returns a client with every right.
func (c *Cluster) Clientset() (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig of cluster %s: %w", c.opts.Name, err)
	}
	config.QPS, config.Burst = 100, 200
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return client, nil
}

// writeCredentials makes certificates, keys and kubeconfigs, and chooses the
// port that the API server is reached at from the machine.
func (c *Cluster) writeCredentials() error {
	var err error
	if c.port, err = controlplane.FreePort(""); err != nil {
		return err
	}
	var addresses []netip.Addr
	for _, a := range c.hostAddresses(2) {
		addresses = append(addresses, a.Addr())
	}
	pki := c.path("pki")
	ca, err := controlplane.WritePKI(pki, "millrace-cluster-"+c.opts.Name, c.opts.Family.of(serviceCIDRs), addresses...)
	if err != nil {
		return err
	}
	kubelet, err := ca.IssueClient("kube-apiserver-kubelet-client", "system:masters")
	if err != nil {
		return err
	}
	if err := kubelet.Write(pki, "kubelet-client"); err != nil {
		return err
	}
	return c.writeKubeconfigs(ca)
}

// inside is where nodes, pods and the control plane reach the API server, outside
// where the machine does.
func (c *Cluster) inside() string {
	return netip.AddrPortFrom(c.ControlPlaneAddress(), apiServerPort).String()
}
func (c *Cluster) outside() string { return fmt.Sprintf("127.0.0.1:%d", c.port) }

// writeKubeconfigs gives every client of the API server its own.
func (c *Cluster) writeKubeconfigs(ca *certs.Authority) error {
	type client struct {
		path, server, user string
		groups             []string
	}
	clients := []client{
		{c.Kubeconfig(), c.outside(), "admin", []string{"system:masters"}},
		{c.path("pki", "kube-controller-manager.kubeconfig"), c.inside(), "system:kube-controller-manager", nil},
		{c.path("pki", "kube-scheduler.kubeconfig"), c.inside(), "system:kube-scheduler", nil},
	}
	for _, n := range c.nodes {
		clients = append(clients, client{n.file("etc/kubernetes/kubelet.kubeconfig"), c.inside(), "system:node:" + n.Name, []string{"system:nodes"}})
		if c.opts.Proxy != Millrace {
			clients = append(clients, client{n.file("etc/kubernetes/kube-proxy.kubeconfig"), c.inside(), "system:kube-proxy", nil})
		}
	}
	for _, cl := range clients {
		pair, err := ca.IssueClient(cl.user, cl.groups...)
		if err != nil {
			return err
		}
		if err := controlplane.WriteKubeconfig(cl.path, c.opts.Name, cl.server, ca, cl.user, controlplane.ByCertificate(pair)); err != nil {
			return err
		}
	}
	return nil
}
