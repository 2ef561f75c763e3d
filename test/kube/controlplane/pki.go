// SPDX-License-Identifier: Apache-2.0

package controlplane

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
)

// WritePKI makes an authority of that common name and writes to dir what
// [APIServerArgs] names: the authority's certificate, that of an API server at
// loopback and these addresses, and the key that tokens are signed with.
func WritePKI(dir, authority string, serviceCIDRs []netip.Prefix, addresses ...netip.Addr) (*certs.Authority, error) {
	ca, err := certs.NewAuthority(authority)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca.PEM(), 0o644); err != nil {
		return nil, fmt.Errorf("writing the CA certificate: %w", err)
	}
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, a := range addresses {
		ips = append(ips, a.AsSlice())
	}
	for _, cidr := range serviceCIDRs {
		ips = append(ips, cidr.Masked().Addr().Next().AsSlice()) // of the Service kubernetes
	}
	server, err := ca.Issue(pkix.Name{CommonName: "kube-apiserver"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, ips...)
	if err != nil {
		return nil, err
	}
	if err := server.Write(dir, "server"); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating the service account key: %w", err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "sa.key"), keyPEM, 0o600); err != nil {
		return nil, fmt.Errorf("writing the service account key: %w", err)
	}
	return ca, nil
}

// APIServerArgs are the arguments of kube-apiserver that are the same wherever it
// runs: the files that WritePKI wrote to dir, and the ranges of cluster IPs.
func APIServerArgs(dir string, serviceCIDRs []netip.Prefix) []string {
	cidrs := make([]string, len(serviceCIDRs))
	for i, cidr := range serviceCIDRs {
		cidrs[i] = cidr.String()
	}
	return []string{
		"--tls-cert-file=" + filepath.Join(dir, "server.crt"),
		"--tls-private-key-file=" + filepath.Join(dir, "server.key"),
		"--client-ca-file=" + filepath.Join(dir, "ca.crt"),
		"--service-account-key-file=" + filepath.Join(dir, "sa.key"),
		"--service-account-signing-key-file=" + filepath.Join(dir, "sa.key"),
		"--service-cluster-ip-range=" + strings.Join(cidrs, ","),
		"--allow-privileged=true", "--profiling=false", "--shutdown-delay-duration=0s",
	}
}

// WriteKubeconfig writes a kubeconfig for a user of the API server at an address
// ("127.0.0.1:6443").
func WriteKubeconfig(path, cluster, server string, ca *certs.Authority, user string, auth *clientcmdapi.AuthInfo) error {
	config := clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{cluster: {Server: "https://" + server, CertificateAuthorityData: ca.PEM()}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{user: auth},
		Contexts:       map[string]*clientcmdapi.Context{cluster: {Cluster: cluster, AuthInfo: user}},
		CurrentContext: cluster,
	}
	if err := clientcmd.WriteToFile(config, path); err != nil {
		return fmt.Errorf("writing the kubeconfig of %s: %w", user, err)
	}
	return nil
}

// ByCertificate is how a client with a certificate is written in a kubeconfig.
func ByCertificate(pair certs.Pair) *clientcmdapi.AuthInfo {
	return &clientcmdapi.AuthInfo{ClientCertificateData: pair.Cert, ClientKeyData: pair.Key}
}

// Ready asks whether an API server is.
func Ready(ctx context.Context, client kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// FreePort returns a TCP port that nobody listens on, of loopback in the network
// namespace at path netns, or in the caller's own if that is empty.
func FreePort(netns string) (port uint16, err error) {
	err = inNetNS(netns, func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("finding a free port: %w", err)
		}
		port = uint16(l.Addr().(*net.TCPAddr).Port)
		return l.Close()
	})
	return port, err
}
