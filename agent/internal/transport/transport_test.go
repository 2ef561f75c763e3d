// SPDX-License-Identifier: Apache-2.0

package transport

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
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// authority makes certificates in files.
type authority struct {
	*testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	file string
}

func (a *authority) write(name, kind string, der []byte) string {
	a.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.Fatal(err)
	}
	return path
}

func (a *authority) issue(name string, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (cert, key string, private *ecdsa.PrivateKey) {
	a.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.Fatal(err)
	}
	if signer == nil {
		signer = private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &private.PublicKey, signer)
	if err != nil {
		a.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		a.Fatal(err)
	}
	return a.write(name+".pem", "CERTIFICATE", der), a.write(name+"-key.pem", "EC PRIVATE KEY", keyDER), private
}

func newAuthority(t *testing.T) *authority {
	a := &authority{T: t, dir: t.TempDir()}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.file, _, a.key = a.issue("ca", a.cert, a.cert, nil)
	return a
}

func (a *authority) leaf(name string) (cert, key string) {
	cert, key, _ = a.issue(name, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, a.key)
	return cert, key
}

func serve(t *testing.T, config *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var options []grpc.ServerOption
	if config != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	g := grpc.NewServer(options...)
	healthv1.RegisterHealthServer(g, health.NewServer())
	go g.Serve(l) //nolint:errcheck // ends by Stop
	t.Cleanup(g.Stop)
	return l.Addr().String()
}

func call(t *testing.T, target string, creds credentials.TransportCredentials) error {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	return err
}

// TestMutualTLS serves and dials by the flags: both ends show certificates, and
// whoever cannot is turned away.
func TestMutualTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	cert, key := ca.leaf("calculator")
	config, err := (&TLS{Cert: cert, Key: key, ClientCA: ca.file}).Server("--listen", "192.0.2.1:1")
	if err != nil {
		t.Fatal(err)
	}
	address := serve(t, config)
	agentCert, agentKey := ca.leaf("agent")
	strangerCert, strangerKey := other.leaf("agent")
	for name, c := range map[string]struct {
		flags TLS
		ok    bool
	}{
		"right":             {TLS{Cert: agentCert, Key: agentKey, CalculatorCA: ca.file, CalculatorName: "calculator"}, true},
		"no certificate":    {TLS{CalculatorCA: ca.file, CalculatorName: "calculator"}, false},
		"foreign agent":     {TLS{Cert: strangerCert, Key: strangerKey, CalculatorCA: ca.file, CalculatorName: "calculator"}, false},
		"foreign authority": {TLS{Cert: agentCert, Key: agentKey, CalculatorCA: other.file, CalculatorName: "calculator"}, false},
		"wrong name":        {TLS{Cert: agentCert, Key: agentKey, CalculatorCA: ca.file}, false},
		"plaintext":         {TLS{}, false},
	} {
		target, creds, err := c.flags.Dial(address, Trust{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := call(t, target, creds); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPlaintext allows it where nobody can listen in, or when told to.
func TestPlaintext(t *testing.T) {
	for address, c := range map[string]struct{ plain, insecure bool }{
		"127.0.0.1:1": {true, true}, "[::1]:1": {true, true}, "localhost:1": {true, true},
		"192.0.2.1:1": {false, true}, "0.0.0.0:1": {false, true}, "example.com:1": {false, true},
	} {
		for _, insecureFlag := range []bool{false, true} {
			want := c.plain || insecureFlag && c.insecure
			f := TLS{Insecure: insecureFlag}
			if _, err := f.Server("--listen", address); (err == nil) != want {
				t.Errorf("serve on %s, insecure %v: %v", address, insecureFlag, err)
			}
			if _, _, err := f.Dial(address, Trust{}); (err == nil) != want {
				t.Errorf("dial %s, insecure %v: %v", address, insecureFlag, err)
			}
		}
	}
	socket := filepath.Join(t.TempDir(), "s")
	target, _, err := (&TLS{}).Dial("unix:"+socket, Trust{})
	if err != nil || target != "unix://"+socket {
		t.Errorf("unix socket: %s, %v", target, err)
	}
	if err := call(t, "passthrough:///"+serve(t, nil), insecure.NewCredentials()); err != nil {
		t.Error(err)
	}
}
