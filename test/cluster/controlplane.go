// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

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
	if err := c.startProcess(relayName, "", c.relayArgs()...); err != nil {
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

func (c *Cluster) relayArgs() []string {
	helper, err := c.helper()
	if err != nil {
		helper = "/proc/self/exe"
	}
	target := netip.AddrPortFrom(c.ControlPlaneAddress(), apiServerPort)
	return []string{helper, RelayCommand, fmt.Sprintf("127.0.0.1:%d", c.port), c.netns(controlPlanePart), target.String()}
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
	var cidrs []string
	for _, cidr := range c.opts.Family.of(serviceCIDRs) {
		cidrs = append(cidrs, cidr.String())
	}
	bind := "0.0.0.0"
	if c.opts.Family != IPv4 {
		bind = "::"
	}
	err = c.startProcess(apiServerName, c.netns(controlPlanePart), program,
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address="+bind,
		"--advertise-address="+c.ControlPlaneAddress().String(),
		fmt.Sprintf("--secure-port=%d", apiServerPort),
		"--tls-cert-file="+c.path("pki", "server.crt"), "--tls-private-key-file="+c.path("pki", "server.key"),
		"--client-ca-file="+c.path("pki", "ca.crt"),
		"--kubelet-client-certificate="+c.path("pki", "kubelet-client.crt"), "--kubelet-client-key="+c.path("pki", "kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+c.path("pki", "sa.key"), "--service-account-signing-key-file="+c.path("pki", "sa.key"),
		"--service-cluster-ip-range="+strings.Join(cidrs, ","),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true", "--profiling=false", "--shutdown-delay-duration=0s",
	)
	if err != nil {
		return err
	}
	client, err := c.Clientset()
	if err != nil {
		return err
	}
	err = wait(ctx, "the API server", func() error {
		if c.pid(apiServerName) == 0 {
			return fmt.Errorf("it ended; its last lines:\n%s", testbed.Tail(c.logFile(apiServerName), 20))
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	return err
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
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("finding a free port: %w", err)
	}
	c.port = uint16(listener.Addr().(*net.TCPAddr).Port)
	if err := listener.Close(); err != nil {
		return err
	}
	ca, err := certs.NewAuthority("millrace-cluster-" + c.opts.Name)
	if err != nil {
		return err
	}
	pki := c.path("pki")
	if err := os.WriteFile(filepath.Join(pki, "ca.crt"), ca.PEM(), 0o644); err != nil {
		return fmt.Errorf("writing the CA certificate: %w", err)
	}
	ips := []net.IP{net.IPv4(127, 0, 0, 1)}
	for _, a := range c.hostAddresses(2) {
		ips = append(ips, a.Addr().AsSlice())
	}
	for _, cidr := range c.opts.Family.of(serviceCIDRs) {
		ips = append(ips, cidr.Addr().Next().AsSlice()) // of the Service kubernetes
	}
	server, err := ca.Issue(pkix.Name{CommonName: "kube-apiserver"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, ips...)
	if err != nil {
		return err
	}
	if err := server.Write(pki, "server"); err != nil {
		return err
	}
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	kubelet, err := ca.Issue(pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}, client)
	if err != nil {
		return err
	}
	if err := kubelet.Write(pki, "kubelet-client"); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generating the service account key: %w", err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(pki, "sa.key"), keyPEM, 0o600); err != nil {
		return fmt.Errorf("writing the service account key: %w", err)
	}
	return c.writeKubeconfigs(ca)
}

// writeKubeconfigs gives every client of the API server its own.
func (c *Cluster) writeKubeconfigs(ca *certs.Authority) error {
	inside := netip.AddrPortFrom(c.ControlPlaneAddress(), apiServerPort).String()
	type client struct{ path, server, user, group string }
	clients := []client{
		{c.Kubeconfig(), fmt.Sprintf("127.0.0.1:%d", c.port), "admin", "system:masters"},
		{c.path("pki", "kube-controller-manager.kubeconfig"), inside, "system:kube-controller-manager", ""},
		{c.path("pki", "kube-scheduler.kubeconfig"), inside, "system:kube-scheduler", ""},
	}
	for _, n := range c.nodes {
		clients = append(clients, client{n.file("etc/kubernetes/kubelet.kubeconfig"), inside, "system:node:" + n.Name, "system:nodes"})
		if c.opts.Proxy != Millrace {
			clients = append(clients, client{n.file("etc/kubernetes/kube-proxy.kubeconfig"), inside, "system:kube-proxy", ""})
		}
	}
	for _, cl := range clients {
		subject := pkix.Name{CommonName: cl.user}
		if cl.group != "" {
			subject.Organization = []string{cl.group}
		}
		pair, err := ca.Issue(subject, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth})
		if err != nil {
			return err
		}
		config := clientcmdapi.Config{
			Clusters:       map[string]*clientcmdapi.Cluster{c.opts.Name: {Server: "https://" + cl.server, CertificateAuthorityData: ca.PEM()}},
			AuthInfos:      map[string]*clientcmdapi.AuthInfo{cl.user: {ClientCertificateData: pair.Cert, ClientKeyData: pair.Key}},
			Contexts:       map[string]*clientcmdapi.Context{c.opts.Name: {Cluster: c.opts.Name, AuthInfo: cl.user}},
			CurrentContext: c.opts.Name,
		}
		if err := os.MkdirAll(filepath.Dir(cl.path), 0o755); err != nil {
			return fmt.Errorf("writing the kubeconfig of %s: %w", cl.user, err)
		}
		if err := clientcmd.WriteToFile(config, cl.path); err != nil {
			return fmt.Errorf("writing the kubeconfig of %s: %w", cl.user, err)
		}
	}
	return nil
}
