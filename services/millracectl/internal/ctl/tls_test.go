// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// authority is a CA made for one test, with its files in dir.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key = a.issue(t, "ca", template)
	return a
}

// issue writes NAME.crt and NAME.key, signed by the authority or, for the
// authority itself, by the new key.
func (a *authority) issue(t *testing.T, name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{
		".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(a.file(name+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func leaf(name string, use x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use},
	}
}

// TestTLS dials a server that demands client certificates: with the right
// files it answers, and each thing missing is refused.
func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	ca.issue(t, "server", leaf("agent.millrace.test", x509.ExtKeyUsageServerAuth))
	ca.issue(t, "client", leaf("operator", x509.ExtKeyUsageClientAuth))
	pair, err := tls.LoadX509KeyPair(ca.file("server.crt"), ca.file("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, lis, &calls{}, (&fakeAgent{}).register, grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	address := lis.Addr().String()
	other := newAuthority(t)

	trust := []string{"maps", "--agent", address, "--tls-ca", ca.file("ca.crt")}
	named := append(trust[:len(trust):len(trust)], "--tls-server-name", "agent.millrace.test")
	shown := append(named[:len(named):len(named)], "--tls-cert", ca.file("client.crt"), "--tls-key", ca.file("client.key"))
	for _, c := range []struct {
		name string
		args []string
		want string // in stderr; empty if the command succeeds
	}{
		{"all given", shown, ""},
		{"no client certificate", named, "cannot reach the agent"},
		{"wrong server name", trust, "certificate"},
		{"another authority", append(shown[:len(shown):len(shown)], "--tls-ca", other.file("ca.crt")), "unknown authority"},
		{"no TLS", []string{"maps", "--agent", address}, "cannot reach the agent"},
		{"no such file", append(shown[:len(shown):len(shown)], "--tls-ca", "/nonesuch"), "/nonesuch"},
		{"no certificate in file", append(shown[:len(shown):len(shown)], "--tls-ca", ca.file("client.key")), "no PEM certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := run(t, nil, c.args...)
			if c.want == "" {
				if code != ExitOK {
					t.Errorf("exit %d: %s", code, stderr)
				}
				return
			}
			if code != ExitFailed || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit %d, stderr %q; want exit 1 and one line with %q", code, stderr, c.want)
			}
		})
	}
}
