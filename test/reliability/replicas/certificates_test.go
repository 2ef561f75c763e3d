// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/millrace-project/millrace/test/certs"
)

// certificates are the files of a CA and of the calculators' certificate, as
// large as those of an installation, and what issues the nodes'.
type certificates struct {
	ca, cert, key string

	dir       string
	authority *certs.Authority
	mu        sync.Mutex
	nodes     map[string]tls.Certificate
}

func makeCertificates(t *testing.T, ip net.IP) *certificates {
	t.Helper()
	dir := t.TempDir()
	c := &certificates{ca: filepath.Join(dir, "ca.crt"), cert: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key"),
		dir: dir, nodes: map[string]tls.Certificate{}}
	var err error
	if c.authority, err = certs.NewAuthority("test"); err != nil {
		t.Fatal(err)
	}
	pair, err := c.authority.Issue(pkix.Name{CommonName: "millrace"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, ip)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(c.ca, c.authority.PEM(), 0o600), pair.Write(dir, "tls")); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *certificates) issue(node string) (certs.Pair, error) {
	return c.authority.Issue(pkix.Name{CommonName: "system:node:" + node},
		[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, net.IPv4(127, 0, 0, 1))
}

// files writes the certificate of a node's agent.
func (c *certificates) files(t *testing.T, node string) (cert, key string) {
	t.Helper()
	pair, err := c.issue(node)
	if err == nil {
		err = pair.Write(c.dir, node)
	}
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(c.dir, node+".crt"), filepath.Join(c.dir, node+".key")
}

// of returns the certificate of a node's agent, made when it is first needed.
func (c *certificates) of(node string) (tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if made, ok := c.nodes[node]; ok {
		return made, nil
	}
	pair, err := c.issue(node)
	if err != nil {
		return tls.Certificate{}, err
	}
	made, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("loading the certificate of %s: %w", node, err)
	}
	c.nodes[node] = made
	return made, nil
}
